"""Collecting on a server's side: steps go in, finished rollouts come out, in threads of its own.

The thread that serves only enqueues: rows of a step that have reached the host, and the end of a
request. A second thread sorts rows into rollouts, a third sends them (`collect_outbox`). Memory
is bounded by one budget for all that waits: rows not sorted yet, rollouts under way, rollouts not
sent yet. What does not fit is dropped, the oldest first, and counted.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sglang_respec.learner.collect_choice import Chooser
from sglang_respec.learner.collect_outbox import Outbox
from sglang_respec.learner.collect_rollout import Finish, OpenRollout, RowFormat

FIRST_GUESS_TOKENS = 512  # of a rollout, for the budget, until some have ended


class Part(NamedTuple):
    """What a step computed of one rollout: rows of the step's two tensors."""

    rollout: OpenRollout
    aux_row: int
    aux_rows: int
    position: int  # of the first of them
    top_row: int
    top_rows: int
    generated: int  # index of the first generated token that was drawn from them


@dataclass(frozen=True)
class StepRows:
    """The rows of one step, on the host."""

    aux: Tensor  # [N, A*H]
    top: Tensor  # [M, 2 K + 1] int32, see `pack_top`
    parts: Sequence[Part]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.aux, self.top))


@dataclass(frozen=True)
class _Ended:
    rollout: OpenRollout
    finish: Finish


class _Gone(NamedTuple):
    serial: int


class Collector:
    """One per serving process. `enter`, `rows` and `ended` are for the thread that serves."""

    def __init__(
        self, row_format: RowFormat, chooser: Chooser, outbox: Outbox, max_tokens: int
    ) -> None:
        self.row_format, self.outbox, self.max_tokens = row_format, outbox, max_tokens
        self._chooser = chooser
        self._events: queue.SimpleQueue[StepRows | _Ended | _Gone | OpenRollout | None] = (
            queue.SimpleQueue()
        )
        self._enqueued_bytes = self._sorted_bytes = 0  # each has one writer
        self._open: OrderedDict[int, weakref.ref[OpenRollout]] = OrderedDict()
        self._open_bytes: dict[int, int] = {}
        self._under_way_bytes = self._serial = 0
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="respec-samples-sort", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """No request is collected any more; everything enqueued so far is sorted."""
        self._events.put(None)
        self._thread.join(seconds)

    def enter(
        self, request_id: str, prompt_tokens: int, seed: int, temperature: float
    ) -> OpenRollout | None:
        """A new request; None if it is not collected."""
        if self._broken or prompt_tokens >= self.max_tokens or not self._chooser.wants(request_id):
            return None
        if not self._chooser.enter(time.monotonic()):
            self.outbox.count("over_the_rate")
            return None
        rollout = OpenRollout(
            request_id, prompt_tokens, seed, temperature, self.row_format, self.max_tokens
        )
        self._events.put(rollout)
        return rollout

    def rows(self, step: StepRows) -> None:
        """Rows that reached the host; from here on they are this object's."""
        if self._enqueued_bytes - self._sorted_bytes > self.outbox.budget_bytes:
            for part in step.parts:
                part.rollout.dropped = True
            return
        self._enqueued_bytes += step.nbytes
        self._events.put(step)

    def ended(self, rollout: OpenRollout, finish: Finish) -> None:
        """A request came to a regular end. One that is aborted is simply let go of."""
        self._events.put(_Ended(rollout, finish))

    @property
    def under_way_bytes(self) -> int:
        """Of rollouts whose requests have not ended."""
        return self._under_way_bytes

    def _run(self) -> None:
        try:
            self._sort_all()
        finally:
            self._broken = True  # else its queue would grow for as long as the server runs

    def _sort_all(self) -> None:
        while (event := self._events.get()) is not None:
            match event:
                case StepRows():
                    self._sort(event)
                case _Ended():
                    self._finish(event)
                case OpenRollout():
                    self._opened(event)
                case _Gone():
                    self._close(event.serial, "unfinished")
            del event  # while the queue is empty nothing may be held on to

    def _opened(self, rollout: OpenRollout) -> None:
        serial, events = self._serial, self._events
        rollout.serial = serial
        self._serial += 1
        # Aborted requests are never reported: their rollout goes when SGLang lets go of them.
        self._open[serial] = weakref.ref(rollout, lambda _: events.put(_Gone(serial)))
        self._open_bytes[serial] = rollout.nbytes
        self._under_way_bytes += rollout.nbytes

    def _sort(self, step: StepRows) -> None:
        aux, top = step.aux.view(torch.uint8).numpy(), step.top.numpy()
        for rollout, aux_row, aux_rows, position, top_row, top_rows, first in step.parts:
            if rollout.dropped:
                continue
            rollout.put_aux(position, aux[aux_row : aux_row + aux_rows])
            rollout.put_top(first, top[top_row : top_row + top_rows])
            nbytes = rollout.nbytes
            self._under_way_bytes += nbytes - self._open_bytes[rollout.serial]
            self._open_bytes[rollout.serial] = nbytes
        self._sorted_bytes += step.nbytes
        self._make_room()

    def _finish(self, end: _Ended) -> None:
        rollout = end.rollout
        if rollout.dropped:  # rows were dropped before they were sorted, or it is closed already
            self._close(rollout.serial, "dropped_by_room")
            return
        sample = rollout.finish(end.finish)
        if sample is None:
            self._close(rollout.serial, "incomplete")
            return
        self._close(rollout.serial)
        self._chooser.leave(sample.nbytes)
        self.outbox.add(sample, time.monotonic())

    def _close(self, serial: int, what: str = "") -> None:
        """The rollout of this number is under way no more; what: it came to nothing, and why."""
        reference = self._open.pop(serial, None)
        if reference is None:
            return
        self._under_way_bytes -= self._open_bytes.pop(serial)
        if (rollout := reference()) is not None:
            rollout.dropped = True
        if what:
            self._chooser.leave(0)
            self.outbox.count(what)

    def _make_room(self) -> None:
        budget = self.outbox.budget_bytes
        if self._under_way_bytes + self.outbox.waiting_bytes <= budget:
            return
        self.outbox.make_room(max(0, budget - self._under_way_bytes))
        while self._under_way_bytes > budget:
            self._close(next(iter(self._open)), "dropped_by_room")
