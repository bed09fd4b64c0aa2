"""Prometheus figures of steps and choices, in the scheduler's process.

The book counts; this writes what was added since the last time, now and then. A counter in a file
that processes share costs microseconds, and a step has few of those.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import Counter, Gauge

from sglang_respec.step_book import StepBook

PREFIX = "sglang_respec:"
FLUSH_STEPS = 256
FLUSH_S = 1.0

# By configuration: a field of `ConfigCounts`, the metric's name, what it counts.
BY_CONFIG = (
    ("steps", "steps", "Decode steps"),
    ("requests", "step_requests", "Batch sizes of the decode steps, added up"),
    ("tokens", "step_tokens", "Tokens that decode steps committed, before stops cut any"),
    ("busy_s", "decode_seconds", "Time of steps that followed another step, catch-ups included"),
    ("measured_steps", "measured_steps", "Of those, steps without a catch-up"),
    ("measured_s", "measured_step_seconds", "Time of measured steps"),
    ("predicted_steps", "predicted_steps", "Measured steps whose time was predicted"),
    ("predicted_s", "predicted_step_seconds", "Time that was predicted for them"),
)
BY_DEPTH = (
    ("offered", "depth_offered", "Nodes the target reached at a depth, with drafted candidates"),
    ("accepted", "depth_accepted", "Of those, where the target's token was a candidate"),
)
OF_BOOK = (
    ("catch_ups", "catch_ups", "Catch-ups of the drafter"),
    ("catch_up_tokens", "catch_up_tokens", "Tokens that catch-ups ran"),
    ("catch_up_s", "catch_up_seconds", "Host time of catch-ups"),
    ("guesses", "guesses", "Tokens the drafter guessed at in plain steps: probes"),
)

Sum = tuple[Counter, tuple[str, ...], float]  # counter, labels, the sum so far


class PlanMetrics:
    """Follows one book. Written at most once a second, and when the last request has ended."""

    def __init__(self, book: StepBook, ring_bytes: int) -> None:
        self._book = book
        self._by_config = [(field, _counter(*of, "config")) for field, *of in BY_CONFIG]
        self._by_depth = [(field, _counter(*of, "depth")) for field, *of in BY_DEPTH]
        self._of_book = [(field, _counter(*of)) for field, *of in OF_BOOK]
        self._switches = _counter(
            "switches",
            "Changes of configuration, by the new one",
            "config",
            "reason",
        )
        self._reasons = _counter("steps_by_reason", "Decode steps by reason", "reason")
        self._share = _gauge("time_share", "Part of the decode time since the start", "config")
        self._decision = _gauge(
            "decision_microseconds", "Host time of the last 1024 decisions", "quantile"
        )
        _gauge("tap_ring_bytes", "Memory of the ring of hidden states").set(ring_bytes)
        self._written: dict[tuple[Counter, tuple[str, ...]], float] = {}
        self._flushed_at = time.monotonic()
        self._steps = 0

    def step_finished(self) -> None:
        """After each step, whose figures are in the book."""
        self._steps += 1
        if self._steps >= FLUSH_STEPS or time.monotonic() - self._flushed_at > FLUSH_S:
            self.flush()

    def requests_ended(self, count: int) -> None:
        """So many requests ended with the last step. If all did, the server may rest now."""
        if count >= self._book.last_batch_size:
            self.flush()

    def flush(self) -> None:
        for counter, labels, total in self._sums():
            written = self._written.get((counter, labels))
            if written is None or total > written:
                (counter.labels(*labels) if labels else counter).inc(total - (written or 0.0))
                self._written[counter, labels] = total
        for name, share in self._book.time_shares().items():
            self._share.labels(name).set(share)
        for name, value in self._book.decision_quantiles_us().items():
            self._decision.labels(name).set(value)
        self._steps = 0
        self._flushed_at = time.monotonic()

    def _sums(self) -> Iterator[Sum]:
        book = self._book
        for field, counter in self._of_book:
            yield counter, (), getattr(book, field)
        for name, counts in book.configs.items():
            for field, counter in self._by_config:
                yield counter, (name,), getattr(counts, field)
        for number, depth in enumerate(book.depths, start=1):
            for field, counter in self._by_depth:
                yield counter, (str(number),), getattr(depth, field)
        for key, count in book.switches.items():
            yield self._switches, key, count
        for reason, count in book.reasons.items():
            yield self._reasons, (reason,), count


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(PREFIX + name, text, labels)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(PREFIX + name, text, labels, multiprocess_mode="mostrecent")
