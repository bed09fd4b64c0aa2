"""The pure parts of bench_policies.py: ratios within a round, what was aimed at, order, tables."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import bench_policies
import bench_policies_report as report
from bench_policies_report import Measurement

from sglang_respec.core import SpeculationConfig
from sglang_respec.errors import RespecError

# Seconds of a load of 1200 tokens, by round; the machine is twice as slow in the second one.
SECONDS = {
    "plain": (12.0, 24.0, 12.0),
    "auto": (8.0, 16.0, 8.0),
    "(3,1,4)": (7.9, 15.8, 7.9),
    "(5,1,6)": (10.0, 20.0, 10.0),
    "sglang-adaptive": (9.0, 18.0, 9.0),
}
CHAIN = SpeculationConfig(3, 1, 4)


def measured() -> list[Measurement]:
    return [
        Measurement(
            policy, round_, 0, 1200, seconds, 0.5, 100, 4, 20, 0.06 * seconds,
            {"0,1,1": seconds / 4, "3,1,4": 3 * seconds / 4, "5,1,6": 0.0}, {"p50": 15.0},
        )
        for policy, rounds in SECONDS.items()
        for round_, seconds in enumerate(rounds)
    ]  # fmt: skip


def result() -> dict[str, Any]:
    return {
        "quick": False, "models": "the bundled models", "profile": {"kind": "measured"},
        "machine": {"cpu": "a CPU", "cores": 2, "memory_gib": 8.0, "gpus": [],
                    "load_average_at_start": [0.1, 0.1, 0.1]},
        "versions": {"torch": "1", "sglang": "2", "sglang-respec": "3", "commit": "abc"},
        "load": {"requests": 64, "rounds": 3, "starts": 1, "slice_s": 2.0, "temperature": 1.0,
                 "answer_tokens": {"least": 20, "median": 100.0, "most": 400}},
        "measurements": [each.facts() for each in measured()],
    }  # fmt: skip


def test_ratios_never_cross_rounds():
    rows = {row.policy: row for row in report.summarise(measured())}
    auto = rows["auto"].over_plain
    assert (auto.low, auto.median, auto.high) == (1.5, 1.5, 1.5)
    assert rows["auto"].tokens_per_s.low == 75.0
    assert rows["auto"].time_shares == {"0,1,1": 0.25, "3,1,4": 0.75}
    assert rows["auto"].switches_per_1000_steps == 40.0
    assert rows["auto"].catch_up_share == pytest.approx(0.06)


def test_what_auto_is_held_against():
    found = {each["over"]: each for each in report.goals(measured())}
    assert set(found) == {"plain", "sglang-adaptive", "(3,1,4)"}, "the best shape, not each"
    assert all(each["held"] for each in found.values())
    assert found["(3,1,4)"]["ratio"]["median"] == pytest.approx(7.9 / 8.0)
    slower = [
        dataclasses.replace(each, seconds=each.seconds * (1.05 if each.policy == "auto" else 1))
        for each in measured()
    ]
    held = {each["over"]: each["held"] for each in report.goals(slower)}
    assert held == {"plain": True, "sglang-adaptive": True, "(3,1,4)": False}


def test_no_goal_without_a_rival():
    assert report.goals([each for each in measured() if each.policy == "plain"]) == []


def test_the_section_and_the_plot(tmp_path: Path):
    text = report.section(result(), "plot.png")
    assert "1.50× (1.50–1.50)" in text  # noqa: RUF001
    assert "(3,1,4) 75%, plain 25%" in text
    assert "of plain (aim 1.00: held)" in text
    assert "quick trial" not in text
    assert "slices of 2 s" in text
    alone = {**result(), "load": {**result()["load"], "slice_s": None}}
    assert "driven alone" in report.section(alone, None)
    assert "quick trial" in report.section({**result(), "quick": True}, None)
    report.plot(tmp_path / "plot.png", result())
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_another_file_is_no_result():
    with pytest.raises(RespecError, match=r"bench_policies\.py"):
        report.read_measurements({"measurements": [{"policy": "plain"}]})


def test_every_policy_comes_early_and_late():
    specs = [SimpleNamespace(name=str(i)) for i in range(4)]
    orders = [
        [each.name for each in bench_policies.visiting_order(specs, round_, 4)]
        for round_ in range(4)
    ]
    assert all(sorted(each) == ["0", "1", "2", "3"] for each in orders)
    places = [[names.index(str(i)) for names in orders] for i in range(4)]
    assert all(len(set(each)) > 1 for each in places)


@pytest.mark.parametrize(
    ("rounds", "starts", "expected"),
    [
        (5, 1, [[0, 1, 2, 3, 4]]),
        (5, 2, [[0, 1, 2], [3, 4]]),
        (3, 3, [[0], [1], [2]]),
    ],
)
def test_rounds_of_each_generation_of_servers(rounds: int, starts: int, expected: list[list[int]]):
    assert bench_policies.generations(rounds, starts) == expected


def options(**changes: Any) -> argparse.Namespace:
    usual = {
        "model_path": None, "drafter_path": None, "requests": 64, "server_args": "",
        "shapes": (CHAIN, SpeculationConfig(1, 4, 5)), "profile": Path("p.json"),
    }  # fmt: skip
    return argparse.Namespace(**{**usual, **changes})


def test_the_server_of_each_policy():
    found = {each.name: " ".join(each.flags) for each in bench_policies.servers(options())}
    assert list(found) == ["plain", "auto", "(3,1,4)", "(1,4,5)", "sglang-adaptive"]
    # The shape of `auto` is the largest in each dimension, and all others are held ready.
    assert "--speculative-num-steps 3 --speculative-eagle-topk 4" in found["auto"]
    assert "--respec-configs 3,1,4; 1,4,5 --respec-profile p.json" in found["auto"]
    assert "--respec-policy always:1,4,5" in found["(1,4,5)"]
    assert found["sglang-adaptive"].endswith(
        "--respec-policy sglang-adaptive --speculative-adaptive"
    )
    assert not any(spec.stock for spec in bench_policies.servers(options()))


def test_choosing():
    specs = bench_policies.servers(options())
    assert [each.name for each in bench_policies.choose(specs, ["auto"], "plain")] == [
        "plain",
        "auto",
    ]
    with pytest.raises(RespecError, match="nobody"):
        bench_policies.choose(specs, ["nobody"], "plain")
