"""Measures what plain decoding costs with speculation loaded: our plain tier beside stock SGLang.

Servers of one target answer the same prompts greedily on one machine. Each of them meets stock
plain in a pair: no other server runs, both are started side by side, and nothing is timed before
their tokens are those of stock plain decoding. Then both have a load at the same time and run in
slices of a tenth of a second, one after the other, so that what else runs on the machine meets
both; a load takes the time that its server was let run. Every round starts every pair anew, since
what a process is dealt at its start, such as where its memory lies, stays with it for life. Only
two at a time: of many servers on a machine the last to start may be slower, stock or not. A ratio
is the median of a round's turns.

  stock plain     SGLang without speculation
  stock again     the same: how far two equal servers differ, which is what these figures can tell
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import bench_report
import bench_serving_report as report
from bench_command import measure_and_tell, numbers, positive, settle_threads
from bench_report import Spread
from bench_servers import Pool, ServerSpec, speculation
from bench_serving_report import BASELINE, Cell, Measurement
from bench_serving_run import Bench, Gate, Load, Prompts, progress_bar
from rich.console import Console
from time_slices import SLICE_S

from respec_server.bundled import demo_models
from respec_server.device import cuda_devices

LOGS = bench_report.ROOT / "run" / "bench_plain_tier"
AGAIN = "stock again"
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
    steps = load.rounds * (len(specs) - 1) * (3 + len(load.batches) * options.turns)
    prompts, gate = Prompts(str(demo_models()[0])), Gate(exact=True)
    equal: dict[str, int] = {}
    measurements = []
    with progress_bar(Console(), steps) as progress:
        for pair, turns in pairings(specs, load.rounds, options.turns):
            with Pool(len(pair), LOGS) as pool:
                bench = Bench(pool, prompts, load, gate, progress)
                bench.start(pair)
                equal |= {spec.name: bench.probe(spec) for spec in pair}
                measurements += one_pair(bench, pair, turns)
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


def pairings(
    specs: Sequence[ServerSpec], rounds: int, turns: int
) -> Iterator[tuple[list[ServerSpec], range]]:
    """Stock, the first, with each of the others in every round, and the numbers of their turns.

    Of each two now one begins and now the other. Stock begins the very first: its tokens are the
    judge of all.
    """
    stock, *rivals = specs
    for number, (round_, place) in enumerate(product(range(rounds), range(len(rivals)))):
        pair = [stock, rivals[place]]
        in_turn = pair if (round_ + place) % 2 == 0 else pair[::-1]
        yield in_turn, range(number * turns, (number + 1) * turns)


def one_pair(bench: Bench, pair: Sequence[ServerSpec], turns: range) -> list[Measurement]:
    """A load on both, per batch and turn; who begins changes from turn to turn."""
    return [
        each
        for size, (place, turn) in product(bench.load.batches, enumerate(turns))
        for each in bench.measure_in_slices(pair[:: -1 if place % 2 else 1], size, turn)
    ]


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
        ServerSpec(AGAIN, True, flags),
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
    add("--rounds", type=positive, default=6, help="times that every pair starts anew (6)")
    add("--turns", type=positive, default=1, help="loads of each pair and batch in a round (1)")
    add("--max-new-tokens", type=int, default=64, help="longest answer (64)")
    add("--server-args", default="", metavar="FLAGS", help="flags for every server, in one text")
    add("--out", type=Path, help="the result's file")
    options = parser.parse_args()
    if len(options.requests) != len(options.batches):
        parser.error("--requests names a number for each of --batches")
    return options


if __name__ == "__main__":
    sys.exit(main())
