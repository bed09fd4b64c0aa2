"""The pure parts of the benchmarks: paired ratios, tables, the README section, the order."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import bench_report
import bench_serving
from bench_report import MARKERS, ROOT, Bars, Spread
from bench_servers import ServerSpec
from bench_serving_report import (
    BASELINE,
    Measurement,
    accepted_table,
    plot,
    read_measurements,
    section,
    speed_table,
    summarise,
    update_readme,
)
from bench_serving_run import Gate, rotated, visiting_order

from sglang_respec.errors import RespecError

RESPEC = "respec (5,1,6)"


def measurement(server: str, round_: int, seconds: float, **changes) -> Measurement:
    values = {
        "server": server,
        "batch": 4,
        "round": round_,
        "position": 0,
        "requests": 8,
        "tokens": 1000,
        "seconds": seconds,
        "verifies": 0 if server == BASELINE else 300,
        "accepted_length": None if server == BASELINE else 3.25,
        "mean_concurrency": 3.1,
        "load_average": 1.0,
        "equal_to_baseline": 8,
    }
    return Measurement(**{**values, **changes})


def drifting() -> list[Measurement]:
    """The machine slows down threefold from round to round; the extension is twice as fast."""
    return [
        measurement(server, round_, seconds)
        for round_, seconds_of_plain in enumerate((10.0, 30.0, 90.0))
        for server, seconds in ((BASELINE, seconds_of_plain), (RESPEC, seconds_of_plain / 2))
    ]


def result(measurements: list[Measurement], **changes) -> dict:
    names = list(dict.fromkeys(each.server for each in measurements))
    values = {
        "quick": False,
        "models": "the bundled models",
        "machine": {
            "cpu": "A CPU",
            "cores": 2,
            "memory_gib": 23.5,
            "gpus": [],
            "load_average_at_start": [0.4, 0.5, 0.6],
        },
        "versions": {"torch": "2", "sglang": "0.5", "sglang-respec": "0.1", "commit": "abc"},
        "load": {"rounds": 3, "max_new_tokens": 256, "accepted_length_max_new_tokens": 400},
        "gate": {"exact": True, "prompts": 16, "equal": dict.fromkeys(names, 16)},
        "servers": [{"name": name} for name in names],
        "accepted_length": [],
        "measurements": [each.facts() for each in measurements],
    }
    return {**values, **changes}


def test_spread_is_the_median_and_both_ends():
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert Spread.of([4.0, 2.0]) == Spread(3.0, 2.0, 4.0)


def test_a_ratio_stays_within_its_round():
    speeds = {"plain": {0: 100.0, 1: 50.0}, "other": {0: 200.0, 1: 125.0, 2: 7.0}}
    ratios = bench_report.paired_ratios(speeds, "plain")
    assert ratios["other"] == {0: 2.0, 1: 2.5}, "round 2 has no baseline"
    assert ratios["plain"] == {0: 1.0, 1: 1.0}


def test_drift_between_rounds_does_not_reach_the_ratio():
    plain, respec = summarise(drifting())
    assert respec.ratio == Spread(2.0, 2.0, 2.0)
    assert plain.tokens_per_s == Spread(1000 / 30, 1000 / 90, 100.0)
    assert (plain.accepted_length, respec.accepted_length) == (None, 3.25)


def test_a_result_file_gives_the_measurements_back():
    stored = json.loads(json.dumps(result(drifting())))
    assert read_measurements(stored) == drifting()


def test_another_file_is_no_result():
    with pytest.raises(RespecError, match=r"bench_serving\.py"):
        read_measurements({"rows": []})


def test_the_table_states_ratios_and_the_baselines_speed():
    table = speed_table(summarise(drifting()), [BASELINE, RESPEC]).splitlines()
    assert table[0] == "| server | batch 4 |"
    assert table[2] == "| stock plain | 33 tokens/s (11–100) |"  # noqa: RUF001
    assert table[3] == "| respec (5,1,6) | 2.00× (2.00–2.00) · 3.25 |"  # noqa: RUF001


def test_a_server_that_missed_a_batch_leaves_its_cell_empty():
    extra = measurement(BASELINE, 0, 5.0, batch=64)
    table = speed_table(summarise([*drifting(), extra]), [BASELINE, RESPEC]).splitlines()
    assert table[3].endswith("· 3.25 |  |")


def test_accepted_lengths_with_and_without_a_goal():
    row = {
        "server": RESPEC,
        "prompts": 64,
        "tokens": 9,
        "verifies": 3,
        "accepted_length": 3.0,
    }
    assert "goal" not in accepted_table([row])
    assert accepted_table([{**row, "goal": 3.5}]).splitlines()[2] == (
        "| respec (5,1,6) | 3.00 | 3.5 | 64 | 9 | 3 |"
    )


def test_the_section_says_what_ran_where():
    text = section(result(drifting()), "docs/plot.png")
    assert "A CPU, 2 cores, 24 GiB, no GPU" in text
    assert "commit abc" in text
    assert "125 on average" in text
    assert "ran 3.1 on average" in text
    assert "portable platform" in text
    assert "![" in text
    assert "quick trial" not in text
    assert "quick trial" in section(result(drifting(), quick=True), None)


def test_differences_that_were_let_through_are_told():
    gate = {"exact": False, "prompts": 16, "equal": {BASELINE: 16, RESPEC: 15}}
    assert "respec (5,1,6) 15 of 16" in section(result(drifting(), gate=gate), None)


def test_the_readme_changes_between_its_markers_only(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{MARKERS[0]}\nold\n{MARKERS[1]}\nend\n", encoding="utf-8")
    image = tmp_path / "docs" / "plot.png"
    for _ in range(2):  # the second time replaces the first
        update_readme(readme, result(drifting()), image)
        text = readme.read_text(encoding="utf-8")
        assert text.startswith(f"# Title\n{MARKERS[0]}\nA CPU")
        assert text.endswith(f"{MARKERS[1]}\nend\n")
        assert "old" not in text
        assert text.count("(docs/plot.png)") == 1


@pytest.mark.parametrize(
    "text", ["", f"{MARKERS[0]}", f"{MARKERS[1]}{MARKERS[0]}", "".join(MARKERS) * 2]
)
def test_a_readme_without_its_markers_is_left_alone(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(RespecError, match="each once"):
        bench_report.insert_section(readme, "body")
    assert readme.read_text(encoding="utf-8") == text


def test_the_repositorys_readme_has_the_markers(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    bench_report.insert_section(copy, "figures")
    assert f"{MARKERS[0]}\nfigures\n{MARKERS[1]}" in copy.read_text(encoding="utf-8")


def test_the_plot_is_a_png_and_the_same_each_time(tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    for path in (first, second):
        plot(path, result(drifting()))
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == second.read_bytes()


def test_a_group_without_a_bar_is_drawn_too(tmp_path):
    bars = Bars("one", "#123456", [None, Spread(1.0, 0.5, 2.0)], ["", "3.1"])
    path = tmp_path / "plot.png"
    bench_report.plot_grouped_bars(path, title="t", value="v", groups=["a", "b"], series=[bars])
    assert path.exists()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"--model-path {ROOT}/sglang_respec/x", "--model-path sglang_respec/x"),
        ("--model-path /models/a/Qwen3-8B --tp-size 4", "--model-path Qwen3-8B --tp-size 4"),
        ("--out=/home/me/x.json", "--out=x.json"),
        ("python scripts/bench_serving.py", "python scripts/bench_serving.py"),
        ("'--lora /a/b --x /c/d/'", "'--lora b --x d/'"),
        ("org/model", "org/model"),
    ],
)
def test_results_name_no_path_of_the_machine(text, shown):
    assert bench_report.public_text(text) == shown


@pytest.mark.parametrize("text", [None, "no json", "[1]"])
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path, text):
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RespecError, match=r"result\.json"):
        bench_report.read_json(path)


def test_facts_are_json(tmp_path):
    facts = {"machine": bench_report.machine_facts(), "versions": bench_report.version_facts()}
    path = tmp_path / "deep" / "result.json"
    bench_report.write_json(path, facts)
    assert json.loads(path.read_text(encoding="utf-8")) == facts
    assert facts["versions"]["sglang"].count(".") >= 2


def specs(count: int) -> list[ServerSpec]:
    return [ServerSpec(str(index), False, ()) for index in range(count)]


def test_rounds_start_at_different_servers():
    firsts = [rotated(specs(6), round_, 3)[0].name for round_ in range(3)]
    assert firsts == ["0", "2", "4"]


@pytest.mark.parametrize("resident", [True, False])
def test_every_server_is_visited_once_in_each_round_of_a_batch(resident):
    visits = list(visiting_order(specs(4), (1, 16), 3, resident=resident))
    assert len(visits) == len({(spec.name, *rest[:2]) for spec, *rest in visits}) == 4 * 2 * 3
    assert visits[0][0].name == "0", "stock plain is the first to answer"


def test_servers_that_cannot_stay_are_started_once_a_round():
    names = [spec.name for spec, *_ in visiting_order(specs(4), (1, 16), 3, resident=False)]
    starts = [name for name, before in zip(names, ["", *names], strict=False) if name != before]
    assert len(starts) == 4 * 3


def test_the_gate_names_who_differs_and_where():
    gate = Gate(exact=True)
    assert gate.check(("probe", 2), BASELINE, [(1, 2, 3), (4, 5)]) == 2
    assert gate.check(("probe", 2), RESPEC, [(1, 2, 3), (4, 5)]) == 2
    with pytest.raises(RespecError, match=r"respec \(5,1,6\) .* 1 of 2 .* answer 1 at token 2"):
        gate.check(("probe", 2), RESPEC, [(1, 2, 3), (4, 5, 6)])


def test_a_gate_that_only_counts_lets_differences_through():
    gate = Gate(exact=False)
    gate.check(("batch", 4), BASELINE, [(1,), (2,)])
    assert gate.check(("batch", 4), RESPEC, [(1,), (3,)]) == 1


def test_only_keeps_the_baseline():
    servers = [ServerSpec(name, False, ()) for name in (BASELINE, "respec (3,1,4)", RESPEC)]
    chosen = bench_serving.choose(servers, ["(5,1,6)"], BASELINE)
    assert [each.name for each in chosen] == [BASELINE, RESPEC]
    with pytest.raises(RespecError, match="No server's name contains 'nobody'"):
        bench_serving.choose(servers, ["nobody"], BASELINE)


def test_requests_grow_with_the_batch():
    asked = SimpleNamespace(
        quick=False, batches=(1, 16), rounds=3, requests_per_batch=None, max_new_tokens=256
    )
    assert bench_serving.make_load(asked).requests == {1: 8, 16: 32}
