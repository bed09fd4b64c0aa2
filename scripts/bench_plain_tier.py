"""Measures what plain decoding costs with speculation loaded: our plain tier beside stock SGLang.

Four servers of the same target answer the same prompts greedily on one machine. Nothing is timed
before every server's tokens are those of stock plain decoding. Every round starts the servers anew,
in another order, so that what a process keeps for life, such as where its memory lies, is averaged.
Within a round each of the others is paired with stock plain: both have a load at the same time and
run in slices of a tenth of a second, one after the other, so that what else runs on the machine
meets both; a load takes the time that its server was let run. In pairs, since a slice begins with
the caches that the one before it left: among four, who runs after whom would count. A ratio is the
median of a round's turns.

  stock plain     SGLang without speculation
  stock 0-step    SGLang's own idle tier: a verify of one node and a draft-extend, every step
  respec plain    our server with policy plain: no drafter at all
  respec ready    our plain tier between two speculative phases: it keeps hidden states

Writes docs/results/plain_tier_<cpu or gpu>.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bench_report
import bench_serving_report as report
from bench_command import measure_and_tell, numbers, positive, settle_threads
from bench_report import Spread
from bench_servers import Pool, ServerSpec, speculation
from bench_serving_report import BASELINE, Cell, Measurement
from bench_serving_run import Bench, Gate, Load, Prompts, progress_bar, rotated
from rich.console import Console
from time_slices import SLICE_S

from respec_server.bundled import demo_models
from respec_server.device import cuda_devices

LOGS = bench_report.ROOT / "run" / "bench_plain_tier"
ZERO_STEP = "stock 0-step"
GOAL = 0.98  # of stock plain decoding, at every batch size
SHAPE = (3, 1, 4)  # what the servers with a drafter hold ready
NEVER_SPECULATING = "above:1000000000"  # tokens of context


def main() -> int:
    return measure_and_tell(parse_options(), run, table, "plain_tier", "bench_plain_tier")


def run(options: argparse.Namespace) -> dict[str, Any]:
    settle_threads(LOGS)
    specs = servers(options)
    load = Load(
        batches=options.batches,
        rounds=options.rounds,
        requests=dict(zip(options.batches, options.requests, strict=True)),
        max_new_tokens=options.max_new_tokens,
        gate_prompts=16,
        accepted_prompts=0,
        accepted_length_max_new_tokens=0,
    )
    facts = {"machine": bench_report.machine_facts(), "versions": bench_report.version_facts()}
    pairs = options.turns * (len(specs) - 1)  # of a round and batch
    steps = load.rounds * (len(specs) + len(load.batches) * pairs)
    prompts, gate = Prompts(str(demo_models()[0])), Gate(exact=True)
    equal: dict[str, int] = {}
    measurements = []
    with progress_bar(Console(), steps) as progress:
        for round_ in range(load.rounds):
            with Pool(len(specs), LOGS) as pool:
                bench = Bench(pool, prompts, load, gate, progress)
                # Stock plain first in the first round: its tokens are the others' judge.
                order = rotated(specs, round_, load.rounds)
                equal = {spec.name: bench.probe(spec) for spec in order}
                measurements += one_round(bench, specs, options.turns, round_)
    return {
        "what": "output tokens/s of plain decoding, with and without speculation loaded",
        "command": bench_report.public_text(shlex.join(["python", *sys.argv])),
        **facts,
        "goal": GOAL,
        "load": asdict(load) | {"turns": options.turns, "pairs": pairs, "slice_s": SLICE_S},
        "servers": [spec.facts() for spec in specs],
        "gate": {"exact": True, "prompts": load.gate_prompts, "equal": equal},
        "summary": [asdict(cell) for cell in summary(measurements, pairs)],
        "measurements": [each.facts() for each in measurements],
    }


def one_round(
    bench: Bench, specs: Sequence[ServerSpec], turns: int, round_: int
) -> list[Measurement]:
    """Of every batch and turn, one load of each pair; pairs are numbered on through the rounds.

    Who begins changes from pair to pair of the same two servers.
    """
    stock, rivals = specs[0], specs[1:]
    measured = []
    for size in bench.load.batches:
        for turn in range(turns):
            for place, rival in enumerate(rivals):
                number = (round_ * turns + turn) * len(rivals) + place
                pair = [stock, rival] if (round_ + turn + place) % 2 == 0 else [rival, stock]
                measured += bench.measure_in_slices(pair, size, number)
    return measured


def summary(measurements: Sequence[Measurement], pairs: int) -> list[Cell]:
    """Per server and batch, over rounds of so many pairs: the median turn of each."""
    found: dict[tuple[str, int], list[Cell]] = {}
    for round_ in sorted({each.round // pairs for each in measurements}):
        those = [each for each in measurements if each.round // pairs == round_]
        for cell in report.summarise(those):
            found.setdefault((cell.server, cell.batch), []).append(cell)
    return [
        Cell(
            server,
            batch,
            Spread.of([cell.tokens_per_s.median for cell in cells]),
            Spread.of([cell.ratio.median for cell in cells]),
            None,
        )
        for (server, batch), cells in found.items()
    ]


def servers(options: argparse.Namespace) -> list[ServerSpec]:
    target, drafter = map(str, demo_models())
    flags: tuple[str, ...] = ("--model-path", target)
    if cuda_devices()[0] == 0:
        flags += ("--device", "cpu", "--dtype", "float32")
    flags += ("--max-running-requests", str(max(options.batches)))
    flags += tuple(shlex.split(options.server_args))
    speculative = (*flags, *speculation(drafter, *SHAPE))
    idle = LOGS / "zero_steps.json"
    # SGLang wants its start shape among the candidates: here of a batch that never comes.
    tiers = {"1": {"candidate_steps": [0]}, "1000000": {"candidate_steps": [SHAPE[0]]}}
    idle.write_text(json.dumps(tiers), encoding="utf-8")
    zero = (*speculative, "--speculative-adaptive", "--speculative-adaptive-config", str(idle))
    ready = (*speculative, "--respec-policy", NEVER_SPECULATING)
    return [
        ServerSpec(BASELINE, True, flags),
        ServerSpec(ZERO_STEP, True, zero),
        ServerSpec("respec plain", False, (*speculative, "--respec-policy", "plain")),
        ServerSpec("respec ready", False, ready),
    ]


def table(result: dict[str, Any]) -> str:
    cells = summary(report.read_measurements(result), result["load"]["pairs"])
    return report.speed_table(cells, [each["name"] for each in result["servers"]])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batches", type=numbers, default=(1, 16, 64), metavar="N,N", help="(1,16,64)")
    add("--requests", type=numbers, default=(8, 32, 64), metavar="N,N",
        help="of a load, by batch; a load of less than seconds scatters (8,32,64)")  # fmt: skip
    add("--rounds", type=positive, default=5, help="times that all servers start anew (5)")
    add("--turns", type=positive, default=3, help="loads of each server and batch in a round (3)")
    add("--max-new-tokens", type=int, default=64, help="longest answer (64)")
    add("--server-args", default="", metavar="FLAGS", help="flags for every server, in one text")
    add("--out", type=Path, help="the result's file")
    options = parser.parse_args()
    if len(options.requests) != len(options.batches):
        parser.error("--requests names a number for each of --batches")
    return options


if __name__ == "__main__":
    sys.exit(main())
