"""Where samples come from. The learner knows the protocol; a folder of chunks is one source."""

import logging
from collections.abc import Sequence
from typing import Protocol

from sglang_respec.learner.chunk import read_chunk
from sglang_respec.learner.chunk_format import BadChunk
from sglang_respec.learner.samples import RolloutSample
from sglang_respec.learner.spool import Spool

logger = logging.getLogger(__name__)


class SampleSource(Protocol):
    """Finished rollouts, in the order in which they are to be learned from."""

    def read(self) -> Sequence[RolloutSample]:
        """What came since the last call, possibly nothing; does not wait. Called by one thread."""
        ...

    def counters(self) -> dict[str, int]:
        """What was read, refused and dropped so far; any thread."""
        ...


class SpoolSource:
    """Chunks of a :class:`.Spool`, one per call. A chunk is removed when it has been read; one
    that cannot be used is removed, counted, and its fault logged."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._read_chunks = self._bad_chunks = 0

    def read(self) -> list[RolloutSample]:
        self._spool.drop_beyond_budget()
        for path in self._spool.waiting()[:1]:
            try:
                samples = read_chunk(path)
            except FileNotFoundError:  # dropped by its writer meanwhile
                return []
            except BadChunk as error:
                self._bad_chunks += 1
                logger.warning("respec learn: %s is left out. %s", path.name, error)
                samples = []
            else:
                self._read_chunks += 1
            path.unlink(missing_ok=True)
            return samples
        return []

    def counters(self) -> dict[str, int]:
        return {
            "chunks_read": self._read_chunks,
            "chunks_bad": self._bad_chunks,
            "chunks_dropped": self._spool.dropped_chunks,
            "chunks_waiting": len(self._spool.waiting()),
        }
