"""Prometheus counters of collected rollouts, in the scheduler's process."""

from __future__ import annotations

from prometheus_client import Counter

BYTES = "sent_bytes"


class CollectingMetrics:
    """Called for each rollout, not for each step."""

    def __init__(self) -> None:
        self._rollouts = Counter(
            "sglang_respec:rollouts", "Rollouts for the learner, and what became of them", ["what"]
        )
        self._bytes = Counter("sglang_respec:rollout_sent_bytes", "Bytes sent to the learner")

    def observe(self, what: str, amount: int) -> None:
        if what == BYTES:
            self._bytes.inc(amount)
        else:
            self._rollouts.labels(what).inc(amount)
