"""Measures what plain decoding costs with speculation loaded: our plain tier beside stock SGLang.

Four servers of the same target answer the same prompts greedily, in rounds that visit them in a
rotated order on one machine; a ratio compares two measurements of the same round, and nothing is
timed before every server's tokens are those of stock plain decoding. Every round starts the
servers anew, so that what a process keeps for life, such as where its memory lies, is averaged too.

  stock plain     SGLang without speculation
  stock 0-step    SGLang's own idle tier: a verify of one node and a draft-extend, every step
  respec plain    our server with policy plain: no drafter at all
  respec ready    our plain tier between two speculative phases: it keeps hidden states

Writes docs/results/plain_tier_<cpu or gpu>.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bench_report
import bench_serving_report as report
import httpx
from bench_servers import Pool, ServerSpec, speculation
from bench_serving_report import BASELINE
from bench_serving_run import Bench, Gate, Load, Prompts, progress_bar, visiting_order
from rich.console import Console

from respec_server.bundled import demo_models
from respec_server.device import cuda_devices
from sglang_respec.config import CONFIG_ENV, RespecConfig
from sglang_respec.errors import RespecError

LOGS = bench_report.ROOT / "run" / "bench_plain_tier"
GOAL = 0.98  # of stock plain decoding, at every batch size
SHAPE = (3, 1, 4)  # what the servers with a drafter hold ready
NEVER_SPECULATING = "above:1000000000"  # tokens of context


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = parse_options()
    try:
        result = run(options)
    except (RespecError, httpx.HTTPError) as error:
        sys.stderr.write(f"bench_plain_tier: {error}\n")
        return 1
    path = options.out or bench_report.result_path("plain_tier")
    bench_report.write_json(path, result)
    print("\n" + table(result) + f"\n\n{path}")
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    LOGS.mkdir(parents=True, exist_ok=True)
    if cuda_devices()[0] == 0 and not os.environ.get(CONFIG_ENV):
        settings = LOGS / "respec.toml"  # on a CPU as the demo has it: one torch thread
        settings.write_text(RespecConfig(portable_threads=1).to_toml(), encoding="utf-8")
        os.environ[CONFIG_ENV] = str(settings)
    specs = servers(options)
    load = Load(
        batches=options.batches,
        rounds=options.rounds,
        # Each place of a batch is taken twice, so that requests join and leave while others run.
        requests={size: max(options.least_requests, 2 * size) for size in options.batches},
        max_new_tokens=options.max_new_tokens,
        gate_prompts=16,
        accepted_prompts=0,
        accepted_length_max_new_tokens=0,
    )
    facts = {"machine": bench_report.machine_facts(), "versions": bench_report.version_facts()}
    steps = len(specs) * (1 + len(load.batches) * load.rounds)
    prompts, gate = Prompts(str(demo_models()[0])), Gate(exact=True)
    visits = list(visiting_order(specs, load.batches, load.rounds, resident=True))
    equal: dict[str, int] = {}
    measurements = []
    with progress_bar(Console(), steps) as progress:
        for round_ in range(load.rounds):
            with Pool(len(specs), LOGS) as pool:
                bench = Bench(pool, prompts, load, gate, progress)
                equal = equal or {spec.name: bench.probe(spec) for spec in specs}
                measurements += [bench.measure(*each) for each in visits if each[2] == round_]
    return {
        "what": "output tokens/s of plain decoding, with and without speculation loaded",
        "command": bench_report.public_text(shlex.join(["python", *sys.argv])),
        **facts,
        "goal": GOAL,
        "load": asdict(load),
        "servers": [spec.facts() for spec in specs],
        "gate": {"exact": True, "prompts": load.gate_prompts, "equal": equal},
        "summary": [asdict(cell) for cell in report.summarise(measurements)],
        "measurements": [each.facts() for each in measurements],
    }


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
        ServerSpec("stock 0-step", True, zero),
        ServerSpec("respec plain", False, (*speculative, "--respec-policy", "plain")),
        ServerSpec("respec ready", False, ready),
    ]


def table(result: dict[str, Any]) -> str:
    cells = report.summarise(report.read_measurements(result))
    return report.speed_table(cells, [each["name"] for each in result["servers"]])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batches", type=_numbers, default=(1, 16, 64), metavar="N,N", help="(1,16,64)")
    add("--rounds", type=int, default=5, help="measurements of each server and batch (5)")
    add("--least-requests", type=int, default=8, help="of one load (8)")
    add("--max-new-tokens", type=int, default=256, help="longest answer (256)")
    add("--server-args", default="", metavar="FLAGS", help="flags for every server, in one text")
    add("--out", type=Path, help="the result's file")
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
