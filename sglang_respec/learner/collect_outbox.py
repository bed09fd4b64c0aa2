"""Finished rollouts on their way out: a bounded queue, and the thread that empties it.

Nobody waits for the receiver. What finds no room pushes out the oldest, counted. A receiver that
is away is tried again, ever more slowly, with the same chunk, until newer rollouts need its room.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from sglang_respec.learner.chunk import encode_chunk
from sglang_respec.learner.chunk_format import MAX_ROLLOUTS, BadChunk
from sglang_respec.learner.samples import RolloutSample

logger = logging.getLogger(__name__)

CHUNK_BYTES = 8 << 20  # as many rollouts as fit, and one at the least
LINGER_S = 0.5  # how long a rollout waits for others of its chunk
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0


class ChannelUnavailable(Exception):  # noqa: N818 (it is what was found, not a kind of error)
    """The receiver cannot be reached or is busy; the same chunk may be accepted later."""


class ChannelRefused(Exception):  # noqa: N818 (as above)
    """The receiver will not have this chunk, whenever it is sent."""


class Channel(Protocol):
    """Where chunks go."""

    def send(self, chunk: bytes) -> None:
        """Raises `ChannelUnavailable` or `ChannelRefused`; called by one thread."""
        ...


class Outbox:
    """Rollouts that wait, oldest first. Any thread may add; one takes."""

    def __init__(
        self,
        budget_bytes: int,
        observe: Callable[[str, int], None] = lambda what, amount: None,
    ) -> None:
        """observe: told of everything that is counted, by whatever thread counts."""
        self.budget_bytes, self._observe = budget_bytes, observe
        self.counts: Counter[str] = Counter()
        self.waiting_bytes = 0
        self._waiting: deque[tuple[RolloutSample, float]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def add(self, sample: RolloutSample, now: float) -> None:
        with self._changed:
            self._waiting.append((sample, now))
            self.waiting_bytes += sample.nbytes
            self._count("collected", 1)
            self._make_room(self.budget_bytes)
            self._changed.notify()

    def make_room(self, budget_bytes: int) -> None:
        """Drop the oldest until the rest take no more than this."""
        with self._changed:
            self._make_room(budget_bytes)

    def count(self, what: str, amount: int = 1) -> None:
        with self._changed:
            self._count(what, amount)

    def counters(self) -> dict[str, int]:
        with self._changed:
            return {
                **self.counts,
                "waiting": len(self._waiting),
                "waiting_bytes": self.waiting_bytes,
            }

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_closed(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)

    def take(self) -> list[RolloutSample]:
        """Rollouts of one chunk, once enough are there or the oldest has waited; none if closed."""
        with self._changed:
            while not self._closed:
                age = time.monotonic() - self._waiting[0][1] if self._waiting else 0.0
                if self._waiting and (age >= LINGER_S or self.waiting_bytes >= CHUNK_BYTES):
                    return self._pop_chunk()
                self._changed.wait(LINGER_S - age if self._waiting else None)
        return []

    def _pop_chunk(self) -> list[RolloutSample]:
        taken: list[RolloutSample] = []
        ids: set[str] = set()
        size = 0
        while self._waiting and len(taken) < MAX_ROLLOUTS:
            sample, _ = self._waiting[0]
            # A client may give two requests one id; a chunk may not hold both.
            if taken and (size + sample.nbytes > CHUNK_BYTES or sample.request_id in ids):
                break
            self._waiting.popleft()
            self.waiting_bytes -= sample.nbytes
            size += sample.nbytes
            taken.append(sample)
            ids.add(sample.request_id)
        return taken

    def _count(self, what: str, amount: int) -> None:
        self.counts[what] += amount
        self._observe(what, amount)

    def _make_room(self, budget_bytes: int) -> None:
        while self._waiting and self.waiting_bytes > budget_bytes:
            sample, _ = self._waiting.popleft()
            self.waiting_bytes -= sample.nbytes
            self._count("dropped_by_room", 1)


class Sender:
    """Empties an outbox into a channel, in a thread of its own."""

    def __init__(self, outbox: Outbox, channel: Channel, bytes_per_s: float) -> None:
        """bytes_per_s 0: as fast as the channel goes."""
        self._outbox, self._channel, self._rate = outbox, channel, bytes_per_s
        self._away = False
        self._thread = threading.Thread(target=self._run, name="respec-samples-send", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _run(self) -> None:
        while taken := self._outbox.take():
            try:
                chunk = encode_chunk(taken)
            except BadChunk as error:
                self._lose(taken, "refused", str(error))
                continue
            started = time.monotonic()
            if self._deliver(chunk, taken):
                self._outbox.count("sent", len(taken))
                self._outbox.count("sent_bytes", len(chunk))
            if self._rate:
                self._outbox.wait_closed(len(chunk) / self._rate - (time.monotonic() - started))

    def _deliver(self, chunk: bytes, taken: list[RolloutSample]) -> bool:
        pause, dropped = FIRST_RETRY_S, self._outbox.counts["dropped_by_room"]
        while True:
            try:
                self._channel.send(chunk)
            except ChannelRefused as error:
                self._lose(taken, "refused", str(error))
                return False
            except ChannelUnavailable as error:
                if not self._away:
                    logger.warning("respec: rollouts wait, since nobody takes them: %s", error)
                self._away = True
                closed = self._outbox.wait_closed(pause)
                pause = min(2 * pause, LAST_RETRY_S)
                # Newer ones had to go meanwhile, and these are older.
                if closed or self._outbox.counts["dropped_by_room"] > dropped:
                    self._outbox.count("dropped_by_room", len(taken))
                    return False
            else:
                if self._away:
                    logger.info("respec: rollouts are taken again.")
                self._away = False
                return True

    def _lose(self, taken: list[RolloutSample], what: str, reason: str) -> None:
        logger.warning("respec: %d rollouts are left out: %s", len(taken), reason)
        self._outbox.count(what, len(taken))
