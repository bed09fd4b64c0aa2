"""Reads the measurements of bench_policies.py: ratios, what was aimed at, the README's table, the
plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench_command import measurements_of
from bench_report import (
    Bars,
    Spread,
    insert_section,
    markdown_table,
    paired_ratios,
    plot_grouped_bars,
)

MARKERS = ("<!-- policies:begin -->", "<!-- policies:end -->")
AUTO, PLAIN, SGLANG = "auto", "plain", "sglang-adaptive"
NEAR_BEST = 0.97  # of the best single configuration, round by round
COLOUR = "#4a8fd3"


@dataclass(frozen=True)
class Measurement:
    """One load on the server of one policy, and what that server says it did."""

    policy: str
    round: int
    position: int  # in the order of its round
    tokens: int
    seconds: float
    load_average: float  # of the machine, when this load began
    steps: int
    switches: int
    catch_up_tokens: int
    catch_up_s: float
    # By configuration; in slices also while others ran, so that its shares alone mean anything.
    busy_s: Mapping[str, float] = field(default_factory=dict)
    decision_us: Mapping[str, float] = field(default_factory=dict)  # of the server so far

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_s": round(self.tokens_per_s, 2)}


def read_measurements(result: Mapping[str, Any]) -> list[Measurement]:
    """The measurements of a result file."""
    return measurements_of(Measurement, result, "bench_policies.py")


@dataclass(frozen=True)
class Row:
    """All rounds of one policy."""

    policy: str
    tokens_per_s: Spread
    over_plain: Spread  # round by round
    time_shares: Mapping[str, float]
    switches_per_1000_steps: float
    catch_up_share: float  # host time of catch-ups over the time of the loads
    decision_us: float | None  # median, of the last round


def summarise(measurements: Sequence[Measurement]) -> list[Row]:
    """One row per policy, in the order in which they first appear."""
    speeds = _speeds(measurements)
    ratios = paired_ratios(speeds, PLAIN)
    return [
        _row([each for each in measurements if each.policy == policy], ratios[policy])
        for policy in speeds
    ]


def _speeds(measurements: Sequence[Measurement]) -> dict[str, dict[int, float]]:
    speeds: dict[str, dict[int, float]] = {}
    for each in measurements:
        speeds.setdefault(each.policy, {})[each.round] = each.tokens_per_s
    return speeds


def _row(rounds: Sequence[Measurement], ratios: Mapping[int, float]) -> Row:
    busy: dict[str, float] = {}
    for each in rounds:
        for config, seconds in each.busy_s.items():
            busy[config] = busy.get(config, 0.0) + seconds
    total, steps = sum(busy.values()), sum(each.steps for each in rounds)
    seconds = sum(each.seconds for each in rounds)
    return Row(
        policy=rounds[0].policy,
        tokens_per_s=Spread.of([each.tokens_per_s for each in rounds]),
        over_plain=Spread.of(list(ratios.values())),
        time_shares={config: each / total for config, each in busy.items() if each > 0.0},
        switches_per_1000_steps=1000 * sum(each.switches for each in rounds) / steps,
        catch_up_share=sum(each.catch_up_s for each in rounds) / seconds,
        decision_us=rounds[-1].decision_us.get("p50"),
    )


def goals(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """What `auto` is to reach: over plain, near the best single one, over SGLang's mode.

    The best single configuration is the one with the highest median, plain decoding left out.
    """
    speeds = _speeds(measurements)
    medians = {policy: Spread.of(list(each.values())).median for policy, each in speeds.items()}
    static = [policy for policy in medians if policy not in (AUTO, PLAIN, SGLANG)]
    rivals = [(PLAIN, 1.0), (SGLANG, 1.0)]
    if static:
        rivals.append((max(static, key=medians.__getitem__), NEAR_BEST))
    found = []
    for rival, least in rivals:
        if AUTO in speeds and rival in speeds:
            ratio = Spread.of(list(paired_ratios(speeds, rival)[AUTO].values()))
            held = ratio.median >= least
            found.append({"over": rival, "least": least, "held": held, "ratio": asdict(ratio)})
    return found


def table(rows: Sequence[Row]) -> str:
    header = ["policy", "tokens/s", "over plain", "where its time went", "changes / 1,000 steps",
              "catch-ups", "decision"]  # fmt: skip
    return markdown_table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    speed, ratio = row.tokens_per_s, row.over_plain
    shares = sorted(row.time_shares.items(), key=lambda item: -item[1])
    return [
        row.policy,
        f"{speed.median:.0f} ({speed.low:.0f}–{speed.high:.0f})",  # noqa: RUF001
        f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})",  # noqa: RUF001
        ", ".join(f"{_name(config)} {share:.0%}" for config, share in shares if share >= 0.005),
        f"{row.switches_per_1000_steps:.0f}",
        f"{row.catch_up_share:.1%}",
        "–" if row.decision_us is None else f"{row.decision_us:.0f} µs",  # noqa: RUF001
    ]


def _name(config: str) -> str:
    return "plain" if config == "0,1,1" else f"({config})"


def section(result: Mapping[str, Any], image: str | None) -> str:
    """The README's section: what was measured where, the table, what was aimed at, the plot."""
    measurements = read_measurements(result)
    parts = [_where(result), table(summarise(measurements)), _how(result), _verdict(measurements)]
    if image:
        parts.append(f"![Throughput of each policy over plain decoding]({image})")
    return "\n\n".join(parts)


def _where(result: Mapping[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    gpus = machine["gpus"]
    device = f"{len(gpus)} × {gpus[0]}" if gpus else "no GPU"  # noqa: RUF001
    trial = result["quick"] or result["load"]["requests"] < 64
    warning = "**A quick trial, not a measurement.** " if trial else ""
    return (
        f"{warning}{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, "
        f"{device}; torch {versions['torch']}, SGLang {versions['sglang']}, sglang-respec "
        f"{versions['sglang-respec']} at commit {versions['commit']}; {result['models']}; load "
        f"average {machine['load_average_at_start'][0]:.1f} at the start."
    )


def _how(result: Mapping[str, Any]) -> str:
    load, profile = result["load"], result["profile"]
    lengths = load["answer_tokens"]
    known = (
        ""
        if profile is None
        else f" `auto` decides by a {profile['kind']} profile and starts with no knowledge of the "
        "drafter; it keeps what it learns from one round to the next."
    )
    slices = load["slice_s"]
    driven = (
        "driven alone"
        if slices is None
        else f"and all have the load at once, running one at a time in slices of {slices:g} s"
    )
    return (
        f"{load['requests']} requests at once, answers of {lengths['least']} to "
        f"{lengths['most']} tokens (median {lengths['median']:.0f}) at temperature "
        f"{load['temperature']}, so that the batch shrinks to 1. Each policy has a server of its "
        f"own, {driven}; {load['rounds']} rounds in alternating order, servers started "
        f"{load['starts']} times, median (smallest–"  # noqa: RUF001
        f"largest), ratios within a round. All answers of all policies are equal, token by token, "
        f"or nothing would have been written.{known}"
    )


def _verdict(measurements: Sequence[Measurement]) -> str:
    said = []
    for each in goals(measurements):
        ratio = each["ratio"]
        said.append(
            f"{ratio['median']:.3f}× ({ratio['low']:.3f}–{ratio['high']:.3f}) of "  # noqa: RUF001
            f"{each['over']} (aim {each['least']:.2f}: {'held' if each['held'] else 'missed'})"
        )
    return f"`auto` reached {'; '.join(said)}." if said else ""


def plot(path: Path, result: Mapping[str, Any]) -> None:
    rows = summarise(read_measurements(result))
    where = (result["machine"]["gpus"] or [result["machine"]["cpu"]])[0]
    plot_grouped_bars(
        path,
        title=f"A batch that shrinks from {result['load']['requests']} to 1, on {where}; "
        "numbers: tokens/s",
        value="output tokens/s, over plain decoding",
        groups=[row.policy for row in rows],
        series=[
            Bars(
                "each policy in a server of its own",
                COLOUR,
                [row.over_plain for row in rows],
                [f"{row.tokens_per_s.median:.0f}" for row in rows],
            )
        ],
    )


def update_readme(readme: Path, result: Mapping[str, Any], image: Path) -> None:
    shown, folder = image.resolve(), readme.resolve().parent
    inside = shown.is_relative_to(folder)
    body = section(result, str(shown.relative_to(folder)) if inside else None)
    insert_section(readme, body, MARKERS)
