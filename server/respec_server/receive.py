"""A pushed file on its way in: bounded, hashed, and put where only this server writes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import glob
import hashlib
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from respec_server.refusal import Refusal
from sglang_respec.drafter.pace import SHARE, rest_s

BLOCK_BYTES = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Received:
    path: Path
    size: int  # bytes
    sha256: str  # hexadecimal
    seconds: float


class Spool:
    """A folder of this server's own; what a killed server left behind is cleared at the start."""

    def __init__(self, folder: str) -> None:
        root = Path(folder or tempfile.gettempdir())
        root.mkdir(parents=True, exist_ok=True)
        _clear_orphans(root)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-", dir=root))

    @contextlib.contextmanager
    def file(self, push: str) -> Iterator[Path]:
        """A place for one push; the file is gone afterwards, however the push ends."""
        path = self.folder / f"{push}.safetensors"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


async def receive_body(
    chunks: AsyncIterator[bytes],
    path: Path,
    *,
    limit: int,
    stall_s: float,
    deadline: float,
    share: float = SHARE,
) -> Received:
    """Write a request's body to `path`. limit in bytes; deadline on the clock of `monotonic`;
    share of one core for hashing and writing, whose rests slow a fast sender down.

    Raises `Refusal`: 413 beyond the limit, 408 for a sender that stalls, 507 when the disk is full.
    """
    started = time.monotonic()
    with _writing(path) as out:
        block = bytearray()
        async for chunk in _in_time(chunks, stall_s, deadline):
            block += chunk
            out.refuse_beyond(limit, len(block))
            if len(block) >= BLOCK_BYTES:
                work_s = await asyncio.to_thread(out.add, block)
                await asyncio.sleep(rest_s(work_s, share))
                block = bytearray()
        await asyncio.to_thread(out.add, block)
        return Received(path, out.size, out.digest.hexdigest(), time.monotonic() - started)


def receive_copy(source: Path, root: Path, path: Path, *, limit: int, share: float) -> Received:
    """Copy a file under `root` to `path`, so that its owner may change it meanwhile.

    Raises `Refusal`: 403 outside the root, or through a link that leads there; 404, 413, 507.
    """
    started = time.monotonic()
    with _open_inside(source, root) as file, _writing(path) as out:
        while block := file.read(BLOCK_BYTES):
            out.refuse_beyond(limit, len(block))
            time.sleep(rest_s(out.add(block), share))
        return Received(path, out.size, out.digest.hexdigest(), time.monotonic() - started)


class _Writer:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0
        self.digest = hashlib.sha256()

    def refuse_beyond(self, limit: int, more: int) -> None:
        if self.size + more > limit:
            raise too_large(limit)

    def add(self, block: bytes | bytearray) -> float:
        """Returns the seconds that this took on a core."""
        started = time.thread_time()
        left = memoryview(block)
        while left:  # an unbuffered file may take less than it is given
            left = left[self._file.write(left) :]
        self.digest.update(block)
        self.size += len(block)
        return time.thread_time() - started


def too_large(limit: int) -> Refusal:
    return Refusal(
        413,
        "too_large",
        f"The push is larger than {limit} bytes, which is more than the serving drafter takes in "
        "float32; send that drafter's tensors alone.",
    )


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[_Writer]:
    descriptor = None
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            yield _Writer(file)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise Refusal(
            507,
            "disk_full",
            f"There is no room for the push in {path.parent.parent}; free some, or start the "
            "server with another --respec-drafter-spool-dir.",
        ) from error


async def _in_time(
    chunks: AsyncIterator[bytes], stall_s: float, deadline: float
) -> AsyncIterator[bytes]:
    iterator = aiter(chunks)
    while True:
        left = min(stall_s, deadline - time.monotonic())
        try:
            chunk = await asyncio.wait_for(anext(iterator), max(0.0, left))
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise Refusal(
                408,
                "stalled",
                f"Nothing came for {stall_s:g} s, or the push took too long; send it again.",
            ) from error
        yield chunk


def _open_inside(source: Path, root: Path) -> IO[bytes]:
    """Open a regular file whose real place is under `root`."""
    outside = Refusal(
        403, "outside", f"Paths must be regular files under {root}, and {source} is none."
    )
    real_root = root.resolve()
    try:
        real = (root / source).resolve(strict=True)
        if not real.is_relative_to(real_root):
            raise outside
        # What is opened is what was resolved: a link put there since is not followed.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise Refusal(404, "no_file", f"There is no file {source} under {root}.") from error
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL, no permission
        if isinstance(error, Refusal):
            raise
        raise outside from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _is_inside(descriptor, real_root):
        os.close(descriptor)
        raise outside
    return os.fdopen(descriptor, "rb", buffering=0)


def _is_inside(descriptor: int, real_root: Path) -> bool:
    """Whether no folder on the way was swapped for a link while we looked (Linux)."""
    link = Path(f"/proc/self/fd/{descriptor}")
    return not link.exists() or link.readlink().is_relative_to(real_root)


def _prefix() -> str:
    return f"respec-drafter-{platform.node()}-"  # a spool may lie in a folder that hosts share


def _clear_orphans(root: Path) -> None:
    for folder in root.glob(f"{glob.escape(_prefix())}*"):
        owner = folder.name.removeprefix(_prefix()).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)
