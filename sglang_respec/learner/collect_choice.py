"""Which requests a server collects: a share of them, within a budget of bytes. Needs no torch.

A request is chosen by a hash of its id, so that the choice is the same wherever it is made and
says nothing about the rollout. The budget is a bucket that fills at the rate allowed; a request is
let in while there is something left in it for those already under way, at their mean size.
"""

import hashlib
import threading

BURST_S = 60.0  # rollouts of a trainer come all at once: so much of the rate may be saved up
MEAN_DECAY = 0.9  # of the running mean of sizes, per rollout


def share_of(request_id: str) -> float:
    """A number in [0, 1) that depends on the id alone."""
    digest = hashlib.blake2b(request_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class Chooser:
    """Lets requests in and counts what they became; any thread. ``now`` is a monotonic clock."""

    def __init__(self, fraction: float, bytes_per_s: float, first_guess: int, now: float) -> None:
        """bytes_per_s 0: no limit. first_guess: bytes of a rollout, until some have ended."""
        self._fraction, self._rate = fraction, bytes_per_s
        self._mean = float(first_guess)
        self._capacity = bytes_per_s * BURST_S
        self._level, self._filled = self._capacity, now
        self._under_way = 0
        self._lock = threading.Lock()

    def wants(self, request_id: str) -> bool:
        """Whether the hash chooses this request; asks nothing of the budget."""
        return share_of(request_id) < self._fraction

    def enter(self, now: float) -> bool:
        """Takes room for one rollout, or says that there is none; each True wants a `leave`."""
        with self._lock:
            if self._rate:
                self._level = min(
                    self._capacity, self._level + self._rate * max(0.0, now - self._filled)
                )
                self._filled = now
                if self._level <= self._under_way * self._mean:
                    return False
            self._under_way += 1
            return True

    def leave(self, nbytes: int) -> None:
        """A rollout ended with so many bytes to send, 0 if it came to nothing."""
        with self._lock:
            self._under_way -= 1
            self._level -= nbytes
            if nbytes:
                self._mean = MEAN_DECAY * self._mean + (1 - MEAN_DECAY) * nbytes
