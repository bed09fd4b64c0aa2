"""Work beside serving, in pieces with rests between them: at most a share of one core.

On a machine whose cores are all busy serving, a push that hashes, checks and copies half a gigabyte
as fast as it can takes a core from it for seconds. Niceness does not help against processes of
equal weight in another scheduling group, and a rest does everywhere. Standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.25  # of one core
PIECE_BYTES = 4 << 20  # a few milliseconds of reading, hashing or comparing


def share_of(percent: int) -> float:
    """The setting `drafter_core_percent` as a share: more than a whole core is a whole one."""
    return min(percent, 100) / 100


def rest_s(work_s: float, share: float) -> float:
    """Seconds of rest after so many of work, for `share` of one core over both."""
    return work_s * (1 - share) / share


class Pace:
    """The pace of one thread's work. `rest` belongs between two pieces of it."""

    def __init__(
        self,
        share: float = SHARE,
        *,
        sleep: Callable[[float], None] = time.sleep,
        worked_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """share: above 0, at most 1, which never rests. worked_s: this thread's time on a core, so
        that waiting for a disk, a lock or a core is no work."""
        if not 0 < share <= 1:
            raise ValueError(f"a share of one core is above 0 and at most 1, got {share}")
        self._share = share
        self._sleep = sleep
        self._worked_s = worked_s
        self._mark: float | None = None  # set in the thread that works, which may be another

    def rest(self) -> None:
        """Sleep for the work since the last rest; the first call only looks at the clock."""
        worked = self._worked_s()
        if self._mark is not None and self._share < 1:
            self._sleep(rest_s(worked - self._mark, self._share))
        self._mark = worked
