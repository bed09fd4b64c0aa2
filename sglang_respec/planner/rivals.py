"""The policies of ReSpec and TLT, as their papers describe them, for comparison.

Neither has public code of this part that runs on today's SGLang. Both are treated generously:
they get our plain tier with its catch-up, ReSpec's table knows the first acceptance exactly, and
TLT's bandit restarts nothing when it changes its arm.
"""

from __future__ import annotations

import random
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from sglang_respec.core import PLAIN, BatchStats, Plan, SpeculationConfig, StepRecord
from sglang_respec.planner.profile import Profile


class BatchTable:
    """ReSpec (arXiv 2510.26475): a table made offline, from batch size to configuration.

    It sees neither the acceptance of the day nor the context length.
    """

    def __init__(
        self,
        profile: Profile,
        accepted: Mapping[SpeculationConfig, float],  # expected, at calibration
        context_tokens: float,  # of the calibration prompts
    ) -> None:
        self._profile, self._accepted, self._context = profile, dict(accepted), context_tokens
        self._best: dict[int, SpeculationConfig] = {}
        self._current = PLAIN

    def decide(self, stats: BatchStats) -> Plan:
        size = stats.batch_size
        if size not in self._best:
            self._best[size] = max(
                self._accepted,
                key=lambda each: (
                    self._accepted[each] / self._profile.round_seconds(each, size, self._context)
                ),
            )
        self._current = self._best[size]
        return Plan(self._current, "rule")

    def record(self, step: StepRecord) -> None:
        pass

    def on_drafter_push(self) -> None:
        pass

    def table(self) -> dict[str, Any]:
        return {"policy": "batch-table", "current": str(self._current), "reason": "rule"}


class Bandit:
    """TLT (arXiv 2511.16665): a bucketed epsilon-greedy bandit per range of batch sizes.

    Reward: accepted length times batch size over time; an arm is worth the median of its last
    rewards. Every arm is pulled once first. Plain decoding is an arm here.
    """

    EPSILON = 0.1
    WINDOW = 300

    def __init__(self, configs: Sequence[SpeculationConfig], seed: int = 0) -> None:
        self._configs = tuple(dict.fromkeys([PLAIN, *configs]))
        self._random = random.Random(seed)  # noqa: S311  (equal on all ranks, not secret)
        self._rewards: dict[tuple[int, SpeculationConfig], deque[float]] = {}
        self._medians: dict[tuple[int, SpeculationConfig], float] = {}
        self._current = PLAIN

    def decide(self, stats: BatchStats) -> Plan:
        bucket = stats.batch_size.bit_length()
        untried = [each for each in self._configs if (bucket, each) not in self._medians]
        if untried:
            self._current = untried[0]
        elif self._random.random() < self.EPSILON:
            self._current = self._random.choice(self._configs)
        else:
            self._current = max(self._configs, key=lambda each: self._medians[bucket, each])
        return Plan(self._current, "rule")

    def record(self, step: StepRecord) -> None:
        if step.seconds is None:
            return
        arm = step.batch_size.bit_length(), step.config
        rewards = self._rewards.setdefault(arm, deque(maxlen=self.WINDOW))
        rewards.append(step.tokens_committed / step.seconds)
        self._medians[arm] = statistics.median(rewards)

    def on_drafter_push(self) -> None:
        pass

    def table(self) -> dict[str, Any]:
        return {"policy": "bandit", "current": str(self._current), "reason": "rule"}
