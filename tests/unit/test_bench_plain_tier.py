"""What the plain tier's benchmarks make of their measurements."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import bench_host_time
import bench_plain_tier
from bench_serving_report import BASELINE, Measurement
from host_time import sitecustomize as host_time


def measured(server: str, batch: int, turn: int, tokens_per_s: float) -> Measurement:
    return Measurement(
        server, batch, turn, 0, batch, round(10 * tokens_per_s), 10.0, 0, None, batch, 0.5, batch
    )


def test_a_ratio_is_the_median_turn_of_a_round_whatever_the_order() -> None:
    speeds = {BASELINE: [100, 50, 80, 200, 200, 200], "ours": [90, 50, 400, 220, 200, 210]}
    rows = [
        measured(server, 4, turn, speeds[server][turn])
        for turn in range(6)
        for server in (sorted(speeds) if turn < 3 else sorted(speeds, reverse=True))
    ]
    cells = {each.server: each for each in bench_plain_tier.summary(rows, pairs=3)}
    ours = cells["ours"]
    assert (ours.ratio.low, ours.ratio.high) == (1.0, 1.05)
    assert (ours.tokens_per_s.low, ours.tokens_per_s.high) == (90, 210)
    assert cells[BASELINE].ratio.median == 1.0


class Noted:
    """Stands for the servers and their clients: writes down who was measured with whom."""

    def __init__(self) -> None:
        self.load = SimpleNamespace(batches=(1, 4))
        self.seen: list[tuple[tuple[str, ...], int, int]] = []

    def measure_in_slices(self, specs: list[Any], size: int, number: int) -> list[Measurement]:
        names = tuple(each.name for each in specs)
        self.seen.append((names, size, number))
        return [measured(name, size, number, 100 + 10 * number) for name in names]


@pytest.mark.parametrize(("rounds", "turns"), [(4, 1), (2, 2)])
def test_each_server_meets_stock_in_a_pair_of_its_own_and_both_begin_alike_often(
    rounds: int, turns: int
) -> None:
    bench, specs = Noted(), [SimpleNamespace(name=name) for name in (BASELINE, "a", "b", "c", "d")]
    rows = [
        each
        for pair, numbers in bench_plain_tier.pairings(specs, rounds, turns)  # type: ignore[arg-type]
        for each in bench_plain_tier.one_pair(bench, pair, numbers)  # type: ignore[arg-type]
    ]
    assert bench.seen[0][0][0] == BASELINE, "whose tokens are the others' judge"
    assert all(len(names) == 2 and BASELINE in names for names, _, _ in bench.seen)
    first = Counter(names for names, _, _ in bench.seen)
    assert {first[pair] for each in "abcd" for pair in ((BASELINE, each), (each, BASELINE))} == {4}
    seen = [(size, number) for _, size, number in bench.seen]
    assert sorted(seen) == [(size, number) for size in (1, 4) for number in range(16)]
    cells = bench_plain_tier.summary(rows, pairs=4 * turns)
    assert {each.server: each.ratio.median for each in cells if each.batch == 4} == {
        BASELINE: 1.0, "a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0,
    }  # fmt: skip


def block(round_: int, server: str, forward_us: float, host_us: float) -> dict[str, Any]:
    return {
        "round": round_,
        "server": server,
        "batch": 1,
        "forward_us": forward_us,
        "step_us": forward_us + host_us,
    }


def test_host_time_is_compared_at_the_forward_pass_of_stock() -> None:
    blocks = [block(0, BASELINE, 8000, 2000), block(1, BASELINE, 9000, 1000)]
    blocks += [block(0, "ours", 20000, 2500), block(0, "ours", 21000, 2500)]
    blocks += [block(1, "ours", 3000, 600), block(1, "ours", 1, 5) | {"batch": 2}]
    stock, ours = bench_host_time.summary(blocks, [1], [BASELINE, "ours"])
    assert stock["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert ours["ratio"]["low"] == pytest.approx(10000 / 10500)
    assert ours["ratio"]["high"] == pytest.approx(10000 / 9600)
    assert ours["host_us"] == {"median": 1550, "low": 600, "high": 2500}
    assert "2,500" in bench_host_time.table({"summary": [ours]})


def test_blocks_hold_steps_that_follow_each_other_with_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0

    def clock() -> int:
        return now

    module: ModuleType = host_time
    monkeypatch.setattr(time, "perf_counter_ns", clock)
    path = tmp_path / "blocks"
    steps = module.Steps(str(path))
    for batch in (*[3] * 12, 0, *[3] * 30, *[2] * 21):
        steps.begin(batch)
        steps.forward_ns = 4000
        now += 10000 if batch else 10**9
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [each["batch"] for each in found] == [3, 2]
    assert found[1] == {"batch": 2, "step_us": 10.0, "forward_us": 4.0}
    assert found[0] == {"batch": 3, "step_us": 10.0, "forward_us": 4.0}
