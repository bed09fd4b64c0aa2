"""Prometheus figures of drafter pushes, on SGLang's /metrics when --enable-metrics is given."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.registry import CollectorRegistry

from respec_server.schemas import Phases

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class PushMetrics:
    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """registry: None for SGLang's, which is the process's own."""
        where = {"registry": registry} if registry is not None else {}
        self._pushes = Counter(
            "sglang_respec:drafter_pushes", "Drafter pushes by result", ["result"], **where
        )
        self._seconds = Histogram(
            "sglang_respec:drafter_push_seconds",
            "Time of an applied push by phase; serving goes on in all but commit",
            ["phase"],
            buckets=SECONDS,
            **where,
        )
        self._rollbacks = Counter(
            "sglang_respec:drafter_rollbacks", "Rollbacks by who asked", ["by"], **where
        )
        self._version = Gauge(
            "sglang_respec:drafter_version",
            "The drafter version that serves",
            multiprocess_mode="mostrecent",
            **where,
        )

    def ended(self, result: str) -> None:
        self._pushes.labels(result).inc()

    def took(self, phases: Phases) -> None:
        for name, milliseconds in phases.model_dump().items():
            self._seconds.labels(name.removesuffix("_ms")).observe(milliseconds / 1e3)

    def rolled_back(self, by: str) -> None:
        self._rollbacks.labels(by).inc()

    def serves(self, version: int) -> None:
        self._version.set(version)
