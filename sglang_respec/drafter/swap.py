"""One rank's side of a drafter swap: stage in a thread, commit between two steps.

Every rank of a tensor-parallel group runs the same calls in the same order, since the scheduler
broadcasts what it is told; only staging takes its own time on each. So a commit first asks the
other ranks whether they are ready, and all of them go ahead or none does.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sglang_respec.drafter.guard import Guard, GuardPolicy
from sglang_respec.drafter.pace import SHARE, Pace
from sglang_respec.drafter.stage import LiveDrafter, Weights
from sglang_respec.drafter.versions import DrafterVersion, History, Origin
from sglang_respec.errors import RespecError

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
Readiness = Literal["failed", "staging", "ready"]
READINESS: tuple[Readiness, ...] = ("failed", "staging", "ready")  # the least of all ranks counts

# What reading a file, receiving from a group and SGLang's weight loaders raise. Anything else is a
# defect of ours; it ends the staging thread alone, and the push is told that it failed.
STAGING_ERRORS = (
    OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
    MemoryError,
)  # fmt: skip
STAGING_NICENESS = 10  # serving goes first where staging shares its cores

Vote = Callable[[int, str], tuple[int, str]]
"""(my readiness as an index, my complaint) -> (the least of all ranks, the complaint of that)"""


def alone(readiness: int, complaint: str) -> tuple[int, str]:
    """The vote of a single rank."""
    return readiness, complaint


@dataclass(frozen=True)
class Staged:
    """What a commit needs, made beforehand: the copy to write, and the one to keep in memory.

    On a CPU both are the same tensors.
    """

    shadow: Weights  # on the device of the serving drafter
    kept: Weights  # in host memory

    @classmethod
    def of(cls, shadow: Weights) -> Staged:
        return cls(shadow, shadow.to(CPU))


class Staging:
    """Weights on their way into shadow buffers, in a thread of their own."""

    def __init__(self, push: str, source: Callable[[], Staged], device: torch.device) -> None:
        self.push = push
        self.staged: Staged | None = None
        self.error = "Staging ended without a result; see the server's log."
        self._source = source
        self._device = device
        self._thread = threading.Thread(target=self._run, name="respec-stage", daemon=True)
        self._thread.start()

    @property
    def readiness(self) -> Readiness:
        if self._thread.is_alive():
            return "staging"
        return "ready" if self.staged is not None else "failed"

    def _run(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), STAGING_NICENESS)
        try:
            with _side_stream(self._device):
                staged = self._source()
            self.staged = staged
        except STAGING_ERRORS as error:
            self.error = " ".join(str(error).split()) or type(error).__name__
            logger.warning("respec: staging push %s failed: %s", self.push, self.error)


@dataclass(frozen=True)
class Commit:
    """What to commit, as the pusher described it."""

    push: str
    label: str = ""
    sha256: str = ""
    origin: Origin = "push"
    restores: int | None = None
    base_version: int | None = None
    guard: GuardPolicy | None = None


class DrafterSwap:
    """The serving drafter of one rank, its history and its guard."""

    def __init__(
        self,
        live: LiveDrafter,
        *,
        label: str,
        keep: int,
        guard: GuardPolicy,
        now: float,
        share: float = SHARE,
    ) -> None:
        """share: of one core, for staging; see `Pace`."""
        first = DrafterVersion(0, label, "", "start", now)
        self.live = live
        self.history: History[Weights] = History(first, keep)
        self.guard = Guard(guard, first.number)
        self._staging: Staging | None = None
        self._share = share

    @property
    def serving(self) -> DrafterVersion:
        return self.history.serving.version

    def begin(self, push: str, source: Callable[[Pace], Weights]) -> None:
        """Start to stage. Raises `RespecError` while another push is being staged."""
        if self._staging is not None and self._staging.readiness == "staging":
            raise RespecError(
                f"Push {self._staging.push} is still being staged; try again when it has ended."
            )

        self._staging = Staging(push, lambda: self._prepare(source), self.live.device)

    def begin_restore(self, push: str, number: int) -> None:
        """Start to stage kept weights. Raises `NotKept`."""
        kept = self.history.weights_of(number)
        self.begin(push, lambda _: kept.to(self.live.device))

    def discard(self, push: str) -> None:
        """Let go of what was staged. A thread that still stages ends by itself."""
        staging = self._staging
        if staging is not None and staging.push == push and staging.readiness != "staging":
            self._staging = None

    def commit(
        self,
        request: Commit,
        *,
        vote: Vote = alone,
        stream: AbstractContextManager[Any] | None = None,
        before_write: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Make the staged weights serve, on every rank or on none.

        Between two steps, on the stream that the next one runs on. Answers `status`: `staging` and
        `failed` leave everything as it was, so do `conflict` and `same`; `committed` is done.
        """
        readiness, complaint = self._ready(request.push)
        least, complaint = vote(READINESS.index(readiness), complaint)
        if READINESS[least] == "staging":
            return {"status": "staging"}
        staging, self._staging = self._staging, None
        if READINESS[least] == "failed" or staging is None or staging.staged is None:
            return {"status": "failed", "error": complaint}
        serving = self.serving
        if request.sha256 and request.sha256 == serving.sha256:
            return {"status": "same", "version": serving.number}
        if request.base_version not in (None, serving.number):
            return {"status": "conflict", "serving": serving.number}
        started = time.perf_counter()
        before_write()
        with stream or nullcontext():
            self.live.write(staging.staged.shadow)
        pause_ms = (time.perf_counter() - started) * 1e3
        version = self._add(request, staging.staged.kept)
        return {
            "status": "committed",
            "version": version.number,
            "previous": serving.number,
            "pause_ms": pause_ms,
            "guard": self.guard.to_dict(),
        }

    def record(self, accepted_drafts: int, verifies: int, shape: str = "") -> str | None:
        """Take in the result of one verify step; returns the guard's verdict when it falls."""
        record = self.history.serving
        record.acceptance.verifies += verifies
        record.acceptance.accepted_drafts += accepted_drafts
        verdict = self.guard.record(accepted_drafts, verifies, shape)
        if verdict is not None:
            record.verdict = verdict
        return verdict

    def state(self) -> dict[str, Any]:
        return {
            "serving": self.serving.number,
            "versions": self.history.to_list(),
            "guard": self.guard.to_dict(),
        }

    def _ready(self, push: str) -> tuple[Readiness, str]:
        staging = self._staging
        if staging is None or staging.push != push:
            return "failed", f"Push {push} is not staged here."
        return staging.readiness, staging.error

    def _prepare(self, source: Callable[[Pace], Weights]) -> Staged:
        pace = Pace(self._share)
        pace.rest()
        if self.serving.number == 0 and not self.history.holds(0):
            self.history.hold(0, self.live.snapshot(CPU, pace))
        return Staged.of(source(pace))

    def _add(self, request: Commit, kept: Weights) -> DrafterVersion:
        old = self.serving
        restored = self.history.record(request.restores) if request.restores is not None else None
        version = DrafterVersion(
            number=old.number + 1,
            label=restored.version.label if restored else request.label,
            sha256=restored.version.sha256 if restored else request.sha256,
            origin=request.origin,
            committed_at=time.time(),
            restores=request.restores,
        )
        self.history.add(version, kept)
        if restored:
            self.guard.restored(version.number)
        else:
            self.guard.swapped(old=old.number, policy=request.guard)
        return version


def _side_stream(device: torch.device) -> AbstractContextManager[Any]:
    """On a GPU, a stream of its own that is drained before staging counts as done."""
    if device.type != "cuda":
        return nullcontext()
    return _DrainedStream(torch.cuda.Stream(device))


class _DrainedStream:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._context = torch.cuda.stream(stream)

    def __enter__(self) -> None:
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)
        self._stream.synchronize()
