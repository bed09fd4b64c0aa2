"""Weights on their way to a server: one push at a time, in a thread of its own.

A push is conditional on the version the weights were judged against, and known by its hash: if
the answer is lost, or the learner died after the push, asking the server again tells whether it
arrived. Nothing here knows HTTP or SGLang: a sink does.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

RETRY_S = (0.5, 8.0)  # first and longest pause while nobody answers


@dataclass(frozen=True)
class Serving:
    """What a server serves."""

    version: int
    sha256: str  # of the pushed file; empty for the drafter it was started with


class VersionConflict(Exception):  # noqa: N818 (it is what happened)
    """Another version than the push's base serves. Nothing was changed."""


class WeightsRefused(Exception):  # noqa: N818
    """The server does not take these weights, now or later. Says why; nothing was changed."""


class SinkUnavailable(Exception):  # noqa: N818
    """Nobody answered, or the server could not for now; whether a push arrived is unknown."""


class WeightSink(Protocol):
    """A server that takes drafters. Any method may raise `SinkUnavailable`."""

    def serving(self) -> Serving: ...

    def push(self, weights: Path, *, sha256: str, label: str, base_version: int) -> Serving:
        """Make a safetensors file serve, if ``base_version`` still does; what serves then.

        Raises `VersionConflict` or `WeightsRefused`.
        """
        ...


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that passed the gate."""

    weights: Path
    sha256: str
    label: str
    base: Serving  # what it was judged against
    step: int
    accepted_length: float


@dataclass(frozen=True)
class Outcome:
    """How a push ended. ``moved``: another version serves, so nothing was pushed."""

    candidate: Candidate
    result: Literal["published", "moved", "refused", "unavailable"]
    serving: Serving | None
    reason: str
    seconds: float


class Publisher:
    """At most one candidate in flight."""

    def __init__(
        self,
        sink: WeightSink,
        *,
        give_up_s: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """give_up_s: how long an unreachable server is tried before the candidate is let go."""
        self._sink, self._give_up_s, self._sleep = sink, give_up_s, sleep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="respec-publish")
        self._flight: Future[Outcome] | None = None
        self._glance: Future[Serving | None] | None = None
        self._candidate: Candidate | None = None
        self._closing = False

    @property
    def busy(self) -> bool:
        """Whether a push is under way or its outcome was not taken yet."""
        return self._flight is not None

    @property
    def in_flight(self) -> Candidate | None:
        """What is being pushed: its file is still needed."""
        return self._candidate if self.busy else None

    def submit(self, candidate: Candidate) -> None:
        if self._flight is not None:
            raise RuntimeError("a push is in flight; take its outcome first")
        self._glance = None  # older than this push
        self._candidate = candidate
        self._flight = self._pool.submit(self._publish, candidate)

    def take(self, *, wait: bool = False) -> Outcome | None:
        """The outcome of the push, once, when there is one."""
        if self._flight is None or not (wait or self._flight.done()):
            return None
        flight, self._flight = self._flight, None
        return flight.result()

    def look(self) -> None:
        """Ask what serves, unless a push or another look is under way; see :meth:`seen`."""
        if self._flight is None and self._glance is None:
            self._glance = self._pool.submit(self._serving)

    def seen(self) -> Serving | None:
        """What the last :meth:`look` found, once; None where there is nothing new."""
        if self._glance is None or not self._glance.done():
            return None
        glance, self._glance = self._glance, None
        return glance.result()

    def _serving(self) -> Serving | None:
        try:
            return self._sink.serving()
        except SinkUnavailable:  # a push will say so, and why
            return None

    def close(self) -> None:
        """End after the attempt under way."""
        self._closing = True
        self._pool.shutdown(wait=True)

    def _publish(self, candidate: Candidate) -> Outcome:
        started, pause_s = time.monotonic(), RETRY_S[0]
        while True:
            try:
                result, serving, reason = self._attempt(candidate)
                break
            except SinkUnavailable as error:
                result, serving, reason = "unavailable", None, str(error)
            if self._closing or time.monotonic() - started + pause_s > self._give_up_s:
                break
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_S[1])
        return Outcome(candidate, result, serving, reason, time.monotonic() - started)

    def _attempt(
        self, candidate: Candidate
    ) -> tuple[Literal["published", "moved", "refused", "unavailable"], Serving | None, str]:
        serving = self._sink.serving()
        if serving.sha256 == candidate.sha256:
            return "published", serving, "it serves already"
        if serving != candidate.base:  # a restarted server counts from 0 again
            return "moved", serving, f"version {serving.version} serves"
        try:
            pushed = self._sink.push(
                candidate.weights, sha256=candidate.sha256, label=candidate.label,
                base_version=candidate.base.version,
            )  # fmt: skip
        except VersionConflict:
            serving = self._sink.serving()
            return "moved", serving, f"version {serving.version} came first"
        except WeightsRefused as error:
            return "refused", serving, str(error)
        return "published", pushed, "pushed"
