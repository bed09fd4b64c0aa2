"""Policies that need no model of cost: one configuration for ever, or switching by rule.

They serve as baselines and, switching without reason, as tests of switching.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sglang_respec.core import PLAIN, BatchStats, Plan, SpeculationConfig, StepRecord
from sglang_respec.errors import RespecError

SGLANG_ADAPTIVE = "sglang-adaptive"
POLICIES = (
    "auto, plain, always:STEPS,TOPK,NODES, fuzz:SEED, alternate:PLAIN_STEPS,SPECULATIVE_STEPS or "
    + SGLANG_ADAPTIVE
)
FUZZ_DWELL_STEPS = 6  # a choice of the fuzz policy holds for one to this many steps


class Policy(Protocol):
    """Chooses the configuration of every decode step, from the same inputs on every rank."""

    def decide(self, stats: BatchStats) -> Plan:
        """The plan of the next decode step; asked once per step."""

    def record(self, step: StepRecord) -> None:
        """What a step did, in the order of the steps; one late where scheduling overlaps."""


@dataclass(frozen=True)
class Always:
    """One configuration for every batch."""

    config: SpeculationConfig

    def decide(self, stats: BatchStats) -> Plan:
        return Plan(self.config, "fixed")

    def record(self, step: StepRecord) -> None:
        """Nothing is learned."""


@dataclass
class Fuzz:
    """Plain or any ready shape, for a random few steps; the same on every rank by its seed."""

    ready: tuple[SpeculationConfig, ...]
    seed: int
    _random: random.Random = field(init=False, repr=False)
    _plan: Plan = field(init=False, repr=False)
    _steps_left: int = field(init=False, default=0, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311  (equal on all ranks, no secret)

    def decide(self, stats: BatchStats) -> Plan:
        if self._steps_left == 0:
            self._steps_left = self._random.randint(1, FUZZ_DWELL_STEPS)
            speculates = self._random.random() < 0.5
            self._plan = Plan(self._random.choice(self.ready) if speculates else PLAIN, "fuzz")
        self._steps_left -= 1
        return self._plan

    def record(self, step: StepRecord) -> None:
        """Nothing is learned."""


@dataclass
class Alternate:
    """So many plain steps, then so many speculative ones, and again."""

    plain_steps: int
    speculative_steps: int
    config: SpeculationConfig
    _step: int = field(init=False, default=0, repr=False)

    def decide(self, stats: BatchStats) -> Plan:
        place = self._step % (self.plain_steps + self.speculative_steps)
        self._step += 1
        return Plan(PLAIN if place < self.plain_steps else self.config, "rule")

    def record(self, step: StepRecord) -> None:
        """Nothing is learned."""


def parse_configs(text: str) -> tuple[SpeculationConfig, ...]:
    """Read ``"3,1,4; 3,4,16"``; an empty text names none."""
    found = tuple(SpeculationConfig.parse(part) for part in text.split(";") if part.strip())
    if PLAIN in found:
        raise RespecError("Plain decoding is always held ready; leave it out of the configs.")
    return found


def configs_of(policy: str, ready: Sequence[SpeculationConfig]) -> tuple[SpeculationConfig, ...]:
    """What the policy of this name may ask for, given the speculative shapes held ready."""
    made = make_policy(policy, ready)
    if isinstance(made, Always):
        return (made.config,)
    return (PLAIN, *ready)


def make_policy(text: str, ready: Sequence[SpeculationConfig]) -> Policy:
    """The policy that a setting names.

    ready: the speculative shapes that the server holds ready, its own first.
    """
    name, _, argument = text.strip().partition(":")
    argument = argument.strip()
    if name == "plain" and not argument:
        return Always(PLAIN)
    if name == "auto" and not argument:
        return Always(ready[0])
    if name == "always" and argument:
        return Always(SpeculationConfig.parse(argument.strip("()")))
    if name == "fuzz" and re.fullmatch(r"\d+", argument):
        return Fuzz(tuple(ready), int(argument))
    if name == "alternate" and (steps := re.fullmatch(r"(\d+),(\d+)", argument)):
        plain, speculative = map(int, steps.groups())
        if plain + speculative:
            return Alternate(plain, speculative, ready[0])
    raise RespecError(f"The policy must be one of {POLICIES}; got {text!r}.")


def check_policy(text: str) -> None:
    """Raise :class:`RespecError` unless some server could run the policy this text names."""
    if text != SGLANG_ADAPTIVE:
        make_policy(text, (SpeculationConfig(1, 1, 2),))
