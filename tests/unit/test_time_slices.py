"""Servers that take turns: one runs at a time, its time alone is counted, none stays stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from time_slices import Sliced, take_turns

MOMENTS = 1200  # in which a worker works, each of a quarter of a millisecond of its own time
MOMENT_S = 0.25e-3
# The one that works is a child of the one whose pid is known, as a scheduler is of its server.
WORKER = """
import json, sys, time
print("ready", flush=True)
sys.stdin.readline()
moments = []
for _ in range({moments}):
    start = time.process_time()
    while time.process_time() - start < {moment_s}: pass
    moments.append(time.monotonic_ns())
print(json.dumps(moments))
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[str]]]:
    worker = WORKER.format(moments=MOMENTS, moment_s=MOMENT_S)
    command = [sys.executable, "-c", PARENT, worker]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for each in started:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    yield started
    for each in started:
        each.kill()
        each.communicate()


def working(worker: subprocess.Popen[str]) -> Callable[[], list[int]]:
    """A load: the moments at which it ran."""

    def load() -> list[int]:
        output, _ = worker.communicate("go\n", timeout=60)
        moments: list[int] = json.loads(output)
        return moments

    return load


def owners(found: Sequence[Sliced[list[int]]]) -> list[int]:
    """Whose moment each was, in the order of time."""
    return [who for _, who in sorted((at, who) for who, it in enumerate(found) for at in it.result)]


def test_one_runs_at_a_time_and_its_time_is_counted(
    workers: list[subprocess.Popen[str]],
) -> None:
    began = time.perf_counter()
    found = take_turns([each.pid for each in workers], [working(each) for each in workers], 0.1)
    took = time.perf_counter() - began
    assert [len(each.result) for each in found] == [MOMENTS] * 2
    changes = sum(a != b for a, b in pairwise(owners(found)))
    assert 3 <= changes < MOMENTS / 8, "side by side it would change with every moment"
    assert all(each.seconds > MOMENTS * MOMENT_S for each in found)
    assert sum(each.seconds for each in found) < took


def test_the_first_runs_first_and_a_slice_ends_with_its_load(
    workers: list[subprocess.Popen[str]],
) -> None:
    found = take_turns([each.pid for each in workers], [working(each) for each in workers], 50)
    assert owners(found) == [0] * MOMENTS + [1] * MOMENTS
    assert sum(each.seconds for each in found) < 50


def test_an_error_stops_nobody_for_good(workers: list[subprocess.Popen[str]]) -> None:
    def lost() -> list[int]:
        raise ConnectionError("lost")

    first, second = workers
    with pytest.raises(ConnectionError, match="lost"):
        take_turns([first.pid, second.pid], [lost, working(second)], 0.03)
    family = [psutil.Process(first.pid), *psutil.Process(first.pid).children()]
    assert all(each.status() != psutil.STATUS_STOPPED for each in family)
    assert second.wait(60) == 0, "its load ran to the end"
