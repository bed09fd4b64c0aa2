"""Measures what a plain decode step costs the host, beside the model's forward pass.

    python scripts/bench_host_time.py

Tokens per second of two servers differ by what their processes were dealt for life (where their
memory lies) more than by what this project adds to a step. The forward pass is the same code in
both; what differs is the rest of the step, which this script times inside the scheduler: stock
SGLang and this server forced to plain, the same loads in turn, servers started anew in each round.

Writes docs/results/host_time_<cpu or gpu>.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import bench_plain_tier
import bench_report
from bench_command import measure_and_tell, numbers, settle_threads
from bench_plain_tier import LOGS, ZERO_STEP
from bench_report import Spread, markdown_table
from bench_servers import Pool, ServerSpec
from bench_serving_report import BASELINE
from bench_serving_run import Prompts, progress_bar, rotated
from rich.console import Console
from rollouts import generate

from respec_server.bundled import demo_models

WATCHER = Path(__file__).resolve().parent / "host_time"  # its sitecustomize.py times steps


def main() -> int:
    return measure_and_tell(parse_options(), run, table, "host_time", "bench_host_time")


def run(options: argparse.Namespace) -> dict[str, Any]:
    settle_threads(LOGS)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(WATCHER), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    # Without SGLang's idle tier, which verifies: its steps are not plain ones.
    specs = [each for each in bench_plain_tier.servers(options) if each.name != ZERO_STEP]
    facts = {"machine": bench_report.machine_facts(), "versions": bench_report.version_facts()}
    prompts = Prompts(str(demo_models()[0]))
    blocks: list[dict[str, Any]] = []
    loads = len(specs) * options.rounds * options.turns * len(options.batches)
    with progress_bar(Console(), loads) as progress:
        for round_ in range(options.rounds):
            order = rotated(specs, round_, options.rounds)
            files = {spec.name: LOGS / f"host-time-{round_}-{i}" for i, spec in enumerate(order)}
            with Pool(len(order), LOGS) as pool:
                for spec in order:
                    files[spec.name].unlink(missing_ok=True)
                    os.environ["RESPEC_HOST_TIME"] = str(files[spec.name])
                    pool.url(spec)
                for size, spec in visits(order, options):
                    progress.update(progress.task_ids[0], description=f"{spec.name}: batch {size}")
                    sampling = {"temperature": 0.0, "max_new_tokens": options.max_new_tokens}
                    everlasting = sampling | {"ignore_eos": True}
                    generate(pool.url(spec), prompts(size), everlasting, concurrency=size)
                    progress.advance(progress.task_ids[0])
            blocks += [
                {"round": round_, "server": name, **json.loads(line)}
                for name, path in files.items()
                for line in path.read_text(encoding="utf-8").splitlines()
            ]
    return {
        "what": "microseconds of plain decode steps: in all, and in the model's forward pass",
        "command": bench_report.public_text(shlex.join(["python", *sys.argv])),
        **facts,
        "servers": [spec.facts() for spec in specs],
        "summary": summary(blocks, options.batches, [spec.name for spec in specs]),
        "rounds": rounds(blocks, options.batches),
    }


def visits(
    order: Sequence[ServerSpec], options: argparse.Namespace
) -> Iterable[tuple[int, ServerSpec]]:
    for size in options.batches:
        for turn in range(options.turns):
            for spec in rotated(order, turn, options.turns):
                yield size, spec


def rounds(blocks: Sequence[dict[str, Any]], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Of each round, server and batch: the median block."""
    found: dict[tuple[int, str, int], list[dict[str, Any]]] = {}
    for each in blocks:
        if each["batch"] in batches:
            found.setdefault((each["round"], each["server"], each["batch"]), []).append(each)
    return [
        {
            "round": round_,
            "server": server,
            "batch": batch,
            "blocks": len(those),
            "step_us": round(statistics.median(each["step_us"] for each in those), 1),
            "forward_us": round(statistics.median(each["forward_us"] for each in those), 1),
            "host_us": round(statistics.median(_host_us(each) for each in those), 1),
        }
        for (round_, server, batch), those in found.items()
    ]


def summary(
    blocks: Sequence[dict[str, Any]], batches: Sequence[int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Per batch and server, over rounds; `ratio`: the speed beside stock plain if both had the
    forward pass that stock plain had in that round."""
    rows = rounds(blocks, batches)
    stock = {(e["round"], e["batch"]): e for e in rows if e["server"] == BASELINE}
    cells = []
    for batch in batches:
        for name in names:
            those = [each for each in rows if each["server"] == name and each["batch"] == batch]
            of_stock = [stock[each["round"], batch] for each in those]
            ratios = [
                (beside["forward_us"] + beside["host_us"])
                / (beside["forward_us"] + each["host_us"])
                for each, beside in zip(those, of_stock, strict=True)
            ]
            spreads = {
                key: vars(Spread.of([each[key] for each in those]))
                for key in ("host_us", "forward_us", "step_us")
            }
            cells.append(
                {"batch": batch, "server": name, **spreads, "ratio": vars(Spread.of(ratios))}
            )
    return cells


def table(result: dict[str, Any]) -> str:
    header = ["batch", "server", "host, µs per step", "forward pass, µs", "speed, equal forward"]
    rows = [
        [
            str(each["batch"]),
            each["server"],
            _text(each["host_us"], "{:,.0f}"),
            _text(each["forward_us"], "{:,.0f}"),
            _text(each["ratio"], "{:.3f}"),
        ]
        for each in result["summary"]
    ]
    return markdown_table(header, rows)


def _text(spread: dict[str, float], form: str) -> str:
    low, median, high = (form.format(spread[key]) for key in ("low", "median", "high"))
    return f"{median} ({low}..{high})"


def _host_us(block: dict[str, Any]) -> float:
    host: float = block["step_us"] - block["forward_us"]
    return host


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batches", type=numbers, default=(1, 16, 64), metavar="N,N")
    add("--rounds", type=int, default=3, help="times that all servers start anew (3)")
    add("--turns", type=int, default=3, help="loads of each server and batch in a round (3)")
    add("--max-new-tokens", type=int, default=100, help="tokens of every answer (100)")
    add("--server-args", default="", metavar="FLAGS", help="flags for every server, in one text")
    add("--out", type=Path, help="the result's file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
