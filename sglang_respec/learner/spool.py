"""Chunks waiting on disk: whole files only, the oldest dropped beyond a budget, each counted.

Writers (a server on the same file system, the learner's HTTP receiver) and the one reader share
nothing but the folder. A chunk is written beside its place and renamed, so it is there whole or
not at all, and one that was not read yet survives the death of either side. Needs no torch.
"""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".rollouts.safetensors"
PARTIAL = ".partial"
ABANDONED_S = 600.0  # a partial file that old has no writer any more


class Spool:
    """A folder of chunks, first in, first out."""

    def __init__(self, folder: str | os.PathLike[str], budget_bytes: int) -> None:
        self.folder = Path(folder)
        self.budget_bytes = budget_bytes
        self.dropped_chunks = 0  # by this process
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A path to write one chunk to; it enters the queue when the block ends without error."""
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        partial = self.folder / (name + PARTIAL)
        try:
            yield partial
            partial.replace(self.folder / name)
        finally:
            partial.unlink(missing_ok=True)
        self.drop_beyond_budget()

    def add(self, chunk: bytes) -> None:
        with self.incoming() as path:
            path.write_bytes(chunk)

    def waiting(self) -> list[Path]:
        """The chunks in the order in which they came."""
        return sorted(self.folder.glob(f"*{SUFFIX}"))

    def drop_beyond_budget(self) -> None:
        """Remove the oldest chunks until the rest fit, and what dead writers left behind."""
        with self._lock:
            sizes = [(path, _size(path)) for path in self.waiting()]
            excess = sum(size for _, size in sizes) - self.budget_bytes
            for path, size in sizes:
                if excess <= 0:
                    break
                if _removed(path):
                    self.dropped_chunks += 1
                excess -= size
        for path in self.folder.glob(f"*{PARTIAL}"):
            if time.time() - _modified(path) > ABANDONED_S:
                path.unlink(missing_ok=True)


def _removed(path: Path) -> bool:
    """Whether it was us who removed it: the other side may have been faster."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
