"""Prometheus counters of what each drafter version was worth, in the scheduler's process."""

from __future__ import annotations

from prometheus_client import Counter

FLUSH_VERIFIES = 64  # a counter in a shared file costs microseconds; a step has few of those


class AcceptanceMetrics:
    """Sums up steps and writes them out now and then."""

    def __init__(self) -> None:
        self._verifies = Counter(
            "sglang_respec:drafter_verifies", "Verifies of single requests", ["version"]
        )
        self._accepted = Counter(
            "sglang_respec:drafter_accepted_drafts", "Drafts the target accepted", ["version"]
        )
        self._version = 0
        self._sums = [0, 0]  # verifies, accepted drafts not written out yet

    def record(self, version: int, correct_drafts: list[int]) -> None:
        if version != self._version or self._sums[0] >= FLUSH_VERIFIES:
            self._flush()
            self._version = version
        self._sums[0] += len(correct_drafts)
        self._sums[1] += sum(correct_drafts)

    def _flush(self) -> None:
        verifies, accepted = self._sums
        if verifies:
            label = str(self._version)
            self._verifies.labels(label).inc(verifies)
            self._accepted.labels(label).inc(accepted)
        self._sums = [0, 0]
