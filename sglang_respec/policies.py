"""The policy of one server, from its settings: which shapes it holds ready, and who chooses.

The policies themselves are the planner's (`sglang_respec.planner`); this reads the texts that name
them, and adds the one that only measurements want: switching once, at a known place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_respec.core import PLAIN, BatchStats, Plan, SpeculationConfig, StepRecord
from sglang_respec.errors import RespecError
from sglang_respec.planner import Always, Policy, Profile, make_policy

DEFAULT, AUTO, ALWAYS = "default", "auto", "always"
SGLANG_ADAPTIVE = "sglang-adaptive"
POLICIES = (
    "default, auto, plain, always, always:STEPS,TOPK,NODES, fuzz:SEED, above:CONTEXT_TOKENS or "
    + SGLANG_ADAPTIVE
)


@dataclass(frozen=True)
class Above:
    """Plain while contexts are short, one shape from so many tokens on.

    Of a request alone it makes a gap of known length, then verifies to its end.
    """

    context_tokens: int
    config: SpeculationConfig

    def decide(self, stats: BatchStats) -> Plan:
        short = stats.mean_context_tokens < self.context_tokens
        return Plan(PLAIN if short else self.config, "rule")

    def record(self, step: StepRecord) -> None:
        """Nothing is learned."""

    def on_drafter_push(self) -> None:
        """Nothing is known of the drafter."""

    def table(self) -> dict[str, Any]:
        return {"policy": "above", "current": str(self.config), "reason": "rule"}


@dataclass(frozen=True)
class PolicyChoice:
    """A policy as the setting names it, read but not made."""

    name: str  # default, auto, plain, always, fuzz, above or sglang-adaptive
    config: SpeculationConfig | None = None  # of always; None is the server's own shape
    number: int = 0  # the seed of fuzz; the context of above

    @classmethod
    def parse(cls, text: str) -> PolicyChoice:
        """Read ``"auto"``, ``"always:3,1,4"``, ``"fuzz:7"`` and the like."""
        name, colon, rest = text.strip().partition(":")
        rest = rest.strip("() ")
        if name in (DEFAULT, AUTO, "plain", ALWAYS, SGLANG_ADAPTIVE) and not colon:
            return cls(name)
        if name == ALWAYS and rest:
            return cls(name, config=SpeculationConfig.parse(rest))
        if name == "fuzz" and re.fullmatch(r"\d*", rest):
            return cls(name, number=int(rest or 0))
        if name == "above" and re.fullmatch(r"\d+", rest):
            return cls(name, number=int(rest))
        raise RespecError(f"The policy must be one of {POLICIES}; got {text!r}.")

    def ready(
        self, own: SpeculationConfig, listed: Sequence[SpeculationConfig]
    ) -> tuple[SpeculationConfig, ...]:
        """The speculative shapes to hold ready: the server's own, those listed, the policy's."""
        wanted = (own, *listed, *([self.config] if self.config else []))
        return tuple(dict.fromkeys(each for each in wanted if not each.is_plain))

    def may_run(self, ready: Sequence[SpeculationConfig]) -> tuple[SpeculationConfig, ...]:
        """Every configuration the policy may ask for, PLAIN among them if it is one."""
        if self.name == "plain":
            return (PLAIN,)
        if self.name in (DEFAULT, ALWAYS):  # a default that may switch has been settled to auto
            return (self.config or ready[0],)
        return (PLAIN, *ready)

    def make(self, ready: Sequence[SpeculationConfig], profile: Profile | None = None) -> Policy:
        """The policy over these shapes, the server's own first; `auto` needs a profile."""
        if self.name == "above":
            return Above(self.number, ready[0])
        if self.name in (DEFAULT, ALWAYS):
            return Always(self.config or ready[0])
        return make_policy(self.name, profile, ready, self.number)


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
