"""The policy of one server, from its settings: which shapes it holds ready, and who chooses.

The policies themselves are the planner's (`sglang_respec.planner`); this reads the texts that name
them, and adds the one that only measurements want: switching by the clock of steps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_respec.core import PLAIN, BatchStats, Plan, SpeculationConfig, StepRecord
from sglang_respec.errors import RespecError
from sglang_respec.planner import Always, Policy, Profile, make_policy

SGLANG_ADAPTIVE = "sglang-adaptive"
POLICIES = (
    "auto, plain, always:STEPS,TOPK,NODES, fuzz:SEED, alternate:PLAIN_STEPS,SPECULATIVE_STEPS or "
    + SGLANG_ADAPTIVE
)


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

    def on_drafter_push(self) -> None:
        """Nothing is known of the drafter."""

    def table(self) -> dict[str, Any]:
        return {"policy": "alternate", "current": str(self.config), "reason": "rule"}


@dataclass(frozen=True)
class PolicyChoice:
    """A policy as the setting names it, read but not made."""

    name: str  # auto, plain, always, fuzz, alternate or sglang-adaptive
    config: SpeculationConfig | None = None  # of always
    numbers: tuple[int, ...] = ()  # the seed of fuzz; the steps of alternate

    @classmethod
    def parse(cls, text: str) -> PolicyChoice:
        """Read ``"auto"``, ``"always:3,1,4"``, ``"fuzz:7"`` and the like."""
        name, _, rest = text.strip().partition(":")
        rest = rest.strip("() ")
        if name in ("auto", "plain", SGLANG_ADAPTIVE) and not rest:
            return cls(name)
        if name == "always" and rest:
            return cls(name, config=SpeculationConfig.parse(rest))
        if name == "fuzz" and re.fullmatch(r"\d*", rest):
            return cls(name, numbers=(int(rest or 0),))
        if name == "alternate" and (steps := re.fullmatch(r"(\d+),(\d+)", rest)):
            plain, speculative = map(int, steps.groups())
            if plain + speculative:
                return cls(name, numbers=(plain, speculative))
        raise RespecError(f"The policy must be one of {POLICIES}; got {text!r}.")

    def ready(
        self, own: SpeculationConfig, listed: Sequence[SpeculationConfig]
    ) -> tuple[SpeculationConfig, ...]:
        """The speculative shapes to hold ready: the server's own, those listed, the policy's."""
        wanted = (own, *listed, *([self.config] if self.config else []))
        return tuple(dict.fromkeys(each for each in wanted if not each.is_plain))

    def may_run(
        self, ready: Sequence[SpeculationConfig], profiled: bool
    ) -> tuple[SpeculationConfig, ...]:
        """Every configuration the policy may ask for, PLAIN among them if it is one."""
        if self.name == "plain":
            return (PLAIN,)
        if self.config is not None:
            return (self.config,)
        if self.name == "auto" and not profiled:
            return (ready[0],)
        return (PLAIN, *ready)

    def make(self, ready: Sequence[SpeculationConfig], profile: Profile | None) -> Policy:
        """The policy over these shapes, the server's own first.

        Without a profile nothing is known of step times, so that `auto` keeps the server's own
        shape.
        """
        if self.name == "alternate":
            plain_steps, speculative_steps = self.numbers
            return Alternate(plain_steps, speculative_steps, ready[0])
        if self.config is not None:
            return Always(self.config)
        if self.name == "auto" and profile is None:
            return Always(ready[0])
        return make_policy(self.name, profile, ready, *self.numbers)


def parse_configs(text: str) -> tuple[SpeculationConfig, ...]:
    """Read ``"3,1,4; 3,4,16"``; an empty text names none."""
    found = tuple(SpeculationConfig.parse(part) for part in text.split(";") if part.strip())
    if PLAIN in found:
        raise RespecError("Plain decoding is always held ready; leave it out of the configs.")
    return found


def check_within(own: SpeculationConfig, configs: Sequence[SpeculationConfig]) -> None:
    """Raise :class:`RespecError` for a shape larger than the server's own, in any dimension.

    SGLang sizes its buffers once, for the shape the server was started with.
    """
    for config in configs:
        if (
            config.num_steps > own.num_steps
            or config.topk > own.topk
            or config.num_draft_tokens > own.num_draft_tokens
        ):
            raise RespecError(
                f"The shape {config} is larger than the server's own, {own}; raise "
                "--speculative-num-steps, --speculative-eagle-topk and "
                "--speculative-num-draft-tokens to the largest of each, or leave it out."
            )
