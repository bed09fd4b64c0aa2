"""Reads the measurements of bench_serving.py: ratios, the README's tables, the plot."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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

BASELINE = "stock plain"
# Stock in greys, the extension in blues; a server not named here takes the last colour.
COLOURS = {
    "stock plain, torch_native attention": "#d3d6da",
    "stock EAGLE-3 (5,1,6)": "#8d949e",
    "respec (3,1,4)": "#a8cbee",
    "respec (5,1,6)": "#4a8fd3",
    "respec (5,4,16)": "#1c4f88",
}
OTHER_COLOUR = "#c9803a"


@dataclass(frozen=True)
class Measurement:
    """One load on one server."""

    server: str
    batch: int  # requests kept running
    round: int
    position: int  # in the order of its round
    requests: int
    tokens: int
    seconds: float
    verifies: int
    accepted_length: float | None  # tokens committed per verify, bonus included
    mean_concurrency: float  # below the batch, since the last requests end alone
    load_average: float  # of the machine, when this load began
    equal_to_baseline: int  # requests whose tokens are those of stock plain

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_s": round(self.tokens_per_s, 2)}


def read_measurements(result: Mapping[str, Any]) -> list[Measurement]:
    """The measurements of a result file."""
    return measurements_of(Measurement, result, "bench_serving.py")


@dataclass(frozen=True)
class Cell:
    """All rounds of one server at one batch size."""

    server: str
    batch: int
    tokens_per_s: Spread
    ratio: Spread  # to the baseline, round by round
    accepted_length: float | None


def summarise(measurements: Sequence[Measurement]) -> list[Cell]:
    """One cell for each server and batch, in the order in which they first appear."""
    cells = []
    servers = list(dict.fromkeys(each.server for each in measurements))
    for batch in dict.fromkeys(each.batch for each in measurements):
        rows = [each for each in measurements if each.batch == batch]
        speeds = {
            name: {each.round: each.tokens_per_s for each in rows if each.server == name}
            for name in servers
        }
        ratios = paired_ratios(speeds, BASELINE)
        for name in servers:
            if not ratios[name]:
                continue
            lengths = [
                each.accepted_length
                for each in rows
                if each.server == name and each.accepted_length is not None
            ]
            cells.append(
                Cell(
                    name,
                    batch,
                    Spread.of(list(speeds[name].values())),
                    Spread.of(list(ratios[name].values())),
                    round(statistics.median(lengths), 3) if lengths else None,
                )
            )
    return cells


def speed_table(cells: Sequence[Cell], names: Sequence[str]) -> str:
    """Tokens per second of the baseline; the others as ratios to it."""
    batches = list(dict.fromkeys(each.batch for each in cells))
    found = {(each.server, each.batch): each for each in cells}
    rows = []
    for name in names:
        texts = [_cell_text(found.get((name, batch))) for batch in batches]
        rows.append([name, *texts])
    return markdown_table(["server", *(f"batch {batch}" for batch in batches)], rows)


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.server == BASELINE:
        speed = cell.tokens_per_s
        return f"{speed.median:.0f} tokens/s ({speed.low:.0f}–{speed.high:.0f})"  # noqa: RUF001
    ratio = cell.ratio
    text = f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})"  # noqa: RUF001
    return text if cell.accepted_length is None else f"{text} · {cell.accepted_length:.2f}"


def accepted_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["server", "accepted length", "prompts", "tokens", "verifies"]
    if any("goal" in row for row in rows):
        header.insert(2, "goal")
    texts = []
    for row in rows:
        length = row["accepted_length"]
        cells = [row["server"], "–" if length is None else f"{length:.2f}"]  # noqa: RUF001
        if "goal" in header:
            cells.append(f"{row['goal']:.1f}" if "goal" in row else "")
        texts.append([*cells, *(str(row[name]) for name in ("prompts", "tokens", "verifies"))])
    return markdown_table(header, texts)


def section(result: Mapping[str, Any], image: str | None) -> str:
    """The README's section: what was measured where, both tables, the plot."""
    cells = summarise(read_measurements(result))
    names = [each["name"] for each in result["servers"]]
    parts = [_where(result), speed_table(cells, names), _how(result)]
    if image:
        parts.append(f"![Speed-up over stock plain decoding at each batch size]({image})")
    if result["accepted_length"]:
        limit = result["load"]["accepted_length_max_new_tokens"]
        said = "Accepted length at temperature 0 (tokens committed per verify, bonus included)"
        parts.append(f"{said}, answers of at most {limit} tokens:")
        parts.append(accepted_table(result["accepted_length"]))
    return "\n\n".join(parts)


def _where(result: Mapping[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    gpus = machine["gpus"]
    device = f"{len(gpus)} × {gpus[0]}" if gpus else "no GPU"  # noqa: RUF001
    warning = "**A quick trial, not a measurement.** " if result["quick"] else ""
    return (
        f"{warning}{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, "
        f"{device}; torch {versions['torch']}, SGLang {versions['sglang']}, sglang-respec "
        f"{versions['sglang-respec']} at commit {versions['commit']}; {result['models']}; load "
        f"average {machine['load_average_at_start'][0]:.1f} at the start. Run `make bench` to "
        "measure yours."
    )


def _how(result: Mapping[str, Any]) -> str:
    load, gate = result["load"], result["gate"]
    plain = [each for each in read_measurements(result) if each.server == BASELINE]
    mean_tokens = sum(each.tokens for each in plain) / sum(each.requests for each in plain)
    running = ", ".join(
        f"{statistics.median(each.mean_concurrency for each in plain if each.batch == batch):.1f}"
        for batch in dict.fromkeys(each.batch for each in plain)
    )
    portable = (
        "" if result["machine"]["gpus"] else " (here on the portable platform of this project)"
    )
    if gate["exact"]:
        equal = "every server gave the tokens of stock plain, or nothing would have been timed"
    else:
        shares = ", ".join(
            f"{name} {count} of {gate['prompts']}" for name, count in gate["equal"].items()
        )
        equal = f"answers equal to those of stock plain: {shares}"
    return (
        f"`stock` is SGLang with `SGLANG_RESPEC=0`{portable}; (steps, top-k, draft tokens) is the "
        f"shape of speculation. The first row is in output tokens per second, the others relative "
        f"to it within the same round: median of {load['rounds']} rounds (smallest–largest), then "  # noqa: RUF001
        f"the accepted length. Batch is the most requests that run at a time; the last ones end "
        f"alone, so that stock plain ran {running} on average. Greedy, natural end, "
        f"at most {load['max_new_tokens']} tokens, {mean_tokens:.0f} on average; {equal}."
    )


def plot(path: Path, result: Mapping[str, Any]) -> None:
    cells = {(each.server, each.batch): each for each in summarise(read_measurements(result))}
    batches = list(dict.fromkeys(batch for _, batch in cells))
    series = []
    for server in result["servers"]:
        name = server["name"]
        row = [cells.get((name, batch)) for batch in batches]
        if name == BASELINE or not any(row):
            continue
        lengths = [cell.accepted_length if cell else None for cell in row]
        series.append(
            Bars(
                name,
                COLOURS.get(name, OTHER_COLOUR),
                [cell.ratio if cell else None for cell in row],
                ["" if length is None else f"{length:.1f}" for length in lengths],
            )
        )
    where = (result["machine"]["gpus"] or [result["machine"]["cpu"]])[0]
    plot_grouped_bars(
        path,
        title=f"Speed over stock plain decoding on {where}; numbers: accepted length",
        value="output tokens/s, relative",
        groups=[f"batch {batch}" for batch in batches],
        series=series,
    )


def update_readme(readme: Path, result: Mapping[str, Any], image: Path) -> None:
    shown = Path(image).resolve()
    folder = readme.resolve().parent
    inside = shown.is_relative_to(folder)
    insert_section(readme, section(result, str(shown.relative_to(folder)) if inside else None))
