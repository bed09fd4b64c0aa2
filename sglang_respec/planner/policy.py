"""What decides which configuration the next batch runs: one Protocol, and the fixed policies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

from sglang_respec.core import PLAIN, BatchStats, Plan, SpeculationConfig, StepRecord
from sglang_respec.errors import RespecError

POLICIES = "auto, plain, always:STEPS,TOPK,TOKENS, fuzz, or sglang-adaptive"
FUZZ_PROBE_TOKENS = 16


class Policy(Protocol):
    """Called by the worker on every rank with equal arguments, so that all ranks decide alike."""

    def decide(self, stats: BatchStats) -> Plan:
        """The plan of the next decode batch. Called once per decode round."""

    def record(self, step: StepRecord) -> None:
        """What a round did; with overlap scheduling a round later, in the order of the rounds."""

    def on_drafter_push(self) -> None:
        """The drafter's weights changed, or changed back."""

    def table(self) -> dict[str, Any]:
        """For ``GET /respec/plan``: plain JSON values."""


class Always:
    """Runs one configuration, whatever the batch. PLAIN is the policy `plain`."""

    def __init__(self, config: SpeculationConfig) -> None:
        self._plan = Plan(config, "fixed")

    def decide(self, stats: BatchStats) -> Plan:
        return self._plan

    def record(self, step: StepRecord) -> None:
        pass

    def on_drafter_push(self) -> None:
        pass

    def table(self) -> dict[str, Any]:
        return {"policy": "always", "current": str(self._plan.config), "reason": "fixed"}


class Fuzz:
    """Changes at random every few rounds: for tests that nothing depends on the choice."""

    def __init__(
        self, configs: Sequence[SpeculationConfig], seed: int = 0, mean_rounds: float = 3.0
    ) -> None:
        if mean_rounds < 1.0:
            raise RespecError(f"fuzz must stay for a mean of 1 round or more, not {mean_rounds}.")
        self._configs = tuple(dict.fromkeys([PLAIN, *configs]))
        self._random = random.Random(seed)  # noqa: S311  (equal on all ranks, not secret)
        self._leave = 1.0 / mean_rounds
        self._config = PLAIN

    def decide(self, stats: BatchStats) -> Plan:
        if self._random.random() < self._leave:
            self._config = self._random.choice(self._configs)
        probes = self._config.is_plain and self._random.random() < self._leave
        return Plan(self._config, "fuzz", FUZZ_PROBE_TOKENS if probes else 0)

    def record(self, step: StepRecord) -> None:
        pass

    def on_drafter_push(self) -> None:
        pass

    def table(self) -> dict[str, Any]:
        return {"policy": "fuzz", "current": str(self._config), "reason": "fuzz"}


def fixed_policy(text: str, configs: Sequence[SpeculationConfig], seed: int) -> Policy | None:
    """The policy of this name if it needs no profile: plain, always:s,k,n, fuzz. Else None."""
    name, _, rest = text.strip().partition(":")
    if name == "plain" and not rest:
        return Always(PLAIN)
    if name == "always":
        config = SpeculationConfig.parse(rest.strip("() "))
        if config != PLAIN and config not in configs:
            known = ", ".join(str(each) for each in configs)
            raise RespecError(f"The policy {text!r} needs {config} among the configs: {known}.")
        return Always(config)
    if name == "fuzz" and not rest:
        return Fuzz(configs, seed)
    return None
