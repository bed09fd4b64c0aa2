"""Measures output tokens/s and accepted length of plain and speculative servers, side by side.

All servers run on this machine in one run and answer the same held-out prompts greedily. Nothing
is timed before every server's tokens are those of stock plain decoding. Then each batch size is
measured in rounds that visit the servers in a rotated order; a ratio compares two measurements of
the same round. Servers stay running beside each other where memory allows (about 2.5 GiB each on
a CPU); otherwise each round starts them again one after another.

Writes docs/results/serving_<cpu or gpu>.json, a plot beside it, and prints the table.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bench_report
import bench_serving_report as report
from bench_command import (
    choose,
    describe_models,
    measure_and_show,
    numbers,
    positive,
    use_demo_settings,
)
from bench_servers import Pool, ServerSpec, default_alive, speculation
from bench_serving_report import BASELINE
from bench_serving_run import Bench, Gate, Load, Prompts, progress_bar, visiting_order
from rich.console import Console

from respec_server.bundled import demo_models
from respec_server.device import cuda_devices
from sglang_respec.config import load_config

LOGS = bench_report.ROOT / "run" / "bench_serving"
SHAPES = {"respec (3,1,4)": (3, 1, 4), "respec (5,1,6)": (5, 1, 6), "respec (5,4,16)": (5, 4, 16)}
# Accepted length that the bundled drafter is meant to reach.
GOALS = {"respec (5,1,6)": 3.0, "respec (5,4,16)": 3.5}
ACCEPTED_MAX_NEW_TOKENS = 400

EPILOG = """\
examples:
  python scripts/bench_serving.py                           # the bundled models
  python scripts/bench_serving.py --quick                   # does it run here? a few minutes
  python scripts/bench_serving.py --only "(5,1,6)" --batches 1,16
  python scripts/bench_serving.py --from docs/results/serving_cpu.json --update-readme
  python scripts/bench_serving.py --model-path MODEL --drafter-path DRAFTER \\
      --server-args "--tp-size 4"                           # on a GPU node

The first takes roughly 20 minutes on two cores, --quick five; half a minute of that is the start
of each server.
"""


def main() -> int:
    return measure_and_show(parse_options(), run, report, "serving", LOGS)


def run(options: argparse.Namespace) -> dict[str, Any]:
    use_demo_settings(options, LOGS)
    facts = {"machine": bench_report.machine_facts(), "versions": bench_report.version_facts()}
    specs = choose(all_servers(options), options.only, BASELINE)
    load = make_load(options)
    judged = [spec for spec in specs if spec.name in GOALS]
    exact = not options.report_differences
    alive = min(options.alive or default_alive(), len(specs))
    steps = len(specs) * (1 + len(load.batches) * load.rounds) + len(judged)
    console = Console()
    console.print(f"{len(specs)} servers, {alive} at a time; logs in {LOGS}", soft_wrap=True)
    prompts = Prompts(options.model_path or str(demo_models()[0]))
    with Pool(alive, LOGS) as pool, progress_bar(console, steps) as progress:
        bench = Bench(pool, prompts, load, Gate(exact), progress)
        equal = {spec.name: bench.probe(spec) for spec in specs}
        visits = visiting_order(specs, load.batches, load.rounds, resident=alive == len(specs))
        measurements = [bench.measure(*visit) for visit in visits]
        accepted = [bench.accepted_length(spec) for spec in judged]
    if options.model_path is None:
        for row in accepted:
            row["goal"] = GOALS[row["server"]]
    return {
        "what": "output tokens/s and accepted length of servers measured side by side",
        "command": bench_report.public_text(shlex.join(["python", *sys.argv])),
        "quick": options.quick,
        **facts,
        "models": describe_models(options),
        "settings": asdict(load_config()),
        "load": {"prompts": "held-out problems of the bundled models", "temperature": 0.0}
        | asdict(load),
        "alive": alive,
        "servers": [spec.facts() for spec in specs],
        "gate": {"exact": exact, "prompts": load.gate_prompts, "equal": equal},
        "summary": [asdict(cell) for cell in report.summarise(measurements)],
        "accepted_length": accepted,
        "measurements": [each.facts() for each in measurements],
    }


def all_servers(options: argparse.Namespace) -> list[ServerSpec]:
    on_cpu = cuda_devices()[0] == 0
    target = str(options.model_path or demo_models()[0])
    drafter = options.drafter_path
    if drafter is None and options.model_path is None:
        drafter = demo_models()[1]
    flags: tuple[str, ...] = ("--model-path", target)
    if on_cpu:
        flags += ("--device", "cpu", "--dtype", "float32")  # bfloat16 is slow on most CPUs
    # SGLang allows fewer running requests with speculation than without unless told.
    flags += ("--max-running-requests", str(max(options.batches)))
    flags += tuple(shlex.split(options.server_args))
    servers = [ServerSpec(BASELINE, True, flags)]
    if on_cpu:
        native = (*flags, "--attention-backend", "torch_native")
        servers.append(ServerSpec("stock plain, torch_native attention", True, native))
    if drafter is not None:
        chain = speculation(str(drafter), 5, 1, 6)
        servers.append(ServerSpec("stock EAGLE-3 (5,1,6)", True, (*flags, *chain)))
        for name, shape in SHAPES.items():
            shaped = speculation(str(drafter), *shape)
            servers.append(ServerSpec(name, False, (*flags, *shaped)))
    return servers


def make_load(options: argparse.Namespace) -> Load:
    quick = options.quick
    requests = {
        size: options.requests_per_batch or (2 * size if quick else max(8, min(2 * size, 64)))
        for size in options.batches
    }
    return Load(
        batches=options.batches,
        rounds=options.rounds,
        requests=requests,
        max_new_tokens=options.max_new_tokens,
        gate_prompts=2 if quick else 16,
        accepted_prompts=4 if quick else 64,
        accepted_length_max_new_tokens=48 if quick else ACCEPTED_MAX_NEW_TOKENS,
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batches", type=numbers, metavar="N,N", help="requests kept running (1,4,16,64)")
    add("--rounds", type=positive, help="measurements of each server and batch (3)")
    add("--requests-per-batch", type=positive, help="requests of one load (2*batch, 8 to 64)")
    add("--max-new-tokens", type=positive, help="longest answer (256)")
    add("--only", action="append", default=[], metavar="NAME", help="part of a server's name")
    add("--quick", action="store_true", help="a tiny trial: batches 1,4, one round, 32 tokens")
    add("--model-path", metavar="MODEL", help="another target than the bundled one")
    add("--drafter-path", metavar="DRAFTER", help="its EAGLE-3 drafter")
    add("--server-args", default="", metavar="FLAGS", help="flags for every server, in one text")
    add("--alive", type=positive, help="servers that run beside each other (as memory allows)")
    add(
        "--report-differences",
        action="store_true",
        help="count answers that differ from stock plain instead of stopping",
    )
    add("--out", type=Path, help="the result's file (docs/results/serving_<cpu or gpu>.json)")
    add("--from", dest="source", type=Path, metavar="FILE", help="measure nothing, show this file")
    add(
        "--update-readme",
        type=Path,
        nargs="?",
        const=bench_report.README,
        metavar="FILE",
        help="write the tables between the bench markers of README.md, or of FILE",
    )
    options = parser.parse_args()
    options.batches = options.batches or ((1, 4) if options.quick else (1, 4, 16, 64))
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.max_new_tokens = options.max_new_tokens or (32 if options.quick else 256)
    return options


if __name__ == "__main__":
    sys.exit(main())
