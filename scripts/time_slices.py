"""Lets servers take turns on a machine whose speed drifts, so that a drift meets all of them.

A shared machine may change its speed by a third within seconds, which is more than what servers
of the same model differ by. Here every server has its load from the beginning, and one of them
runs at a time: the processes of the others are stopped (SIGSTOP). What a load took is the time its
server was let run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil  # type: ignore[import-untyped]

T = TypeVar("T")

SLICE_S = 0.1  # far longer than it takes a process to find its caches again
SENDING_S = 0.5  # in which clients send their requests, to servers that are stopped


@dataclass(frozen=True)
class Sliced(Generic[T]):
    """What a load returned, and the seconds in which its server ran."""

    result: T
    seconds: float


def take_turns(
    pids: Sequence[int], loads: Sequence[Callable[[], T]], slice_s: float = SLICE_S
) -> list[Sliced[T]]:
    """Run all loads, each a client of the process of its place and of that one's children.

    The first process runs first. A load's error is raised when all have ended; no process is left
    stopped.
    """
    with _stopped(pids) as families, ThreadPoolExecutor(len(loads)) as threads:
        futures = [threads.submit(load) for load in loads]
        try:
            seconds = _slices(families, futures, slice_s)
        finally:
            for family in families:  # or the loads, and these threads, would never end
                family.resume()
    return [Sliced(each.result(), took) for each, took in zip(futures, seconds, strict=True)]


def _slices(
    families: Sequence[_Family], futures: Sequence[Future[T]], slice_s: float
) -> list[float]:
    seconds = [0.0] * len(families)
    wait(futures, timeout=SENDING_S)
    while not all(each.done() for each in futures):
        for place, (family, future) in enumerate(zip(families, futures, strict=True)):
            if future.done():
                continue
            started = time.perf_counter()
            family.resume()
            wait([future], timeout=slice_s)
            family.stop()
            seconds[place] += time.perf_counter() - started
    return seconds


@contextmanager
def _stopped(pids: Sequence[int]) -> Iterator[list[_Family]]:
    families = [_Family(pid) for pid in pids]
    try:
        for family in families:
            family.stop()
        yield families
    finally:
        for family in families:
            family.resume()


class _Family:
    """A process and its children, as they are when it is met."""

    def __init__(self, pid: int) -> None:
        parent = psutil.Process(pid)
        self._members = [parent, *parent.children(recursive=True)]

    def stop(self) -> None:
        for member in self._members:
            with suppress(psutil.NoSuchProcess):  # its load will say so
                member.suspend()

    def resume(self) -> None:
        for member in self._members:
            with suppress(psutil.NoSuchProcess):
                member.resume()
