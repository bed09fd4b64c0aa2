"""Policies that need no model of cost: one configuration for ever, or switching by rule.

They serve as baselines and, switching without reason, as tests of switching.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from sglang_respec.core import PLAIN, BatchStats, Plan, Policy, SpeculationConfig, StepRecord
from sglang_respec.errors import RespecError

SGLANG_ADAPTIVE = "sglang-adaptive"
READS = (
    "auto, plain, always:3,1,4, fuzz:SEED, alternate:PLAIN_STEPS,SPECULATIVE_STEPS or "
    + SGLANG_ADAPTIVE
)
FUZZ_DWELL_STEPS = 6  # a choice of the fuzz policy holds for one to this many steps


@dataclass(frozen=True)
class Always:
    """One configuration for every batch."""

    config: SpeculationConfig

    @property
    def configs(self) -> tuple[SpeculationConfig, ...]:
        return (self.config,)

    def decide(self, stats: BatchStats) -> Plan:
        return Plan(self.config, "the policy knows no other")

    def record(self, step: StepRecord) -> None:
        """Nothing is learned."""


@dataclass
class Fuzz:
    """Any configuration, for a random few steps; the same on every rank by its seed."""

    configs: tuple[SpeculationConfig, ...]
    seed: int
    _random: random.Random = field(init=False, repr=False)
    _plan: Plan = field(init=False, repr=False)
    _steps_left: int = field(init=False, default=0, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def decide(self, stats: BatchStats) -> Plan:
        if self._steps_left == 0:
            self._steps_left = self._random.randint(1, FUZZ_DWELL_STEPS)
            self._plan = Plan(self._random.choice(self.configs), "drawn at random")
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

    @property
    def configs(self) -> tuple[SpeculationConfig, ...]:
        return (PLAIN, self.config)

    def decide(self, stats: BatchStats) -> Plan:
        place = self._step % (self.plain_steps + self.speculative_steps)
        self._step += 1
        config = PLAIN if place < self.plain_steps else self.config
        return Plan(config, f"step {place} of the alternation")

    def record(self, step: StepRecord) -> None:
        """Nothing is learned."""


def parse_configs(text: str) -> tuple[SpeculationConfig, ...]:
    """Read ``"3,1,4; 3,4,16"``; an empty text names none."""
    return tuple(SpeculationConfig.parse(part) for part in text.split(";") if part.strip())


def check_policy_text(text: str) -> None:
    """Raise :class:`RespecError` unless :func:`make_policy` could read it for some server."""
    if text != SGLANG_ADAPTIVE:
        make_policy(text, (SpeculationConfig(1, 1, 2),))


def make_policy(text: str, configs: Sequence[SpeculationConfig]) -> Policy:
    """The policy a setting names.

    configs: the speculative configurations the server holds ready, its own first.
    """
    name, _, argument = text.strip().partition(":")
    argument = argument.strip()
    if name == "plain" and not argument:
        return Always(PLAIN)
    if name == "auto" and not argument:
        return Always(configs[0])
    if name == "always" and argument:
        return Always(SpeculationConfig.parse(argument.strip("()")))
    if name == "fuzz" and re.fullmatch(r"\d+", argument):
        return Fuzz((PLAIN, *configs), int(argument))
    if name == "alternate" and (steps := re.fullmatch(r"(\d+),(\d+)", argument)):
        plain, speculative = map(int, steps.groups())
        if plain + speculative:
            return Alternate(plain, speculative, configs[0])
    raise RespecError(f"The policy must be one of {READS}; got {text!r}.")
