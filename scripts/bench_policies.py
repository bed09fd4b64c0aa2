"""Measures policies end to end on a load as RL has it: many requests at once, some of them long.

Every policy runs in a server of its own, of our code: the planner, plain decoding, each single
shape, and SGLang's adaptive mode. All are sent the same requests at once, whose answers end one
after the other, so that the batch shrinks from full to 1. One server is driven at a time, in an
order that alternates from round to round; a ratio compares two measurements of the same round.
Nothing is written unless every policy gave the same tokens.

Writes docs/results/policies_<cpu or gpu>.json, a plot beside it, and prints the table.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bench_policies_report as report
import bench_report
import httpx
from bench_command import (
    choose,
    describe_models,
    measure_and_show,
    positive,
    use_demo_settings,
)
from bench_policies_report import AUTO, PLAIN, SGLANG, Measurement
from bench_servers import Pool, ServerSpec, default_alive, speculation
from bench_serving_run import Prompts, progress_bar, warm_up
from rich.console import Console
from rich.progress import Progress
from rollouts import Batch, generate

from respec_server.bundled import demo_models
from respec_server.device import cuda_devices
from sglang_respec.config import load_config
from sglang_respec.core import SpeculationConfig
from sglang_respec.errors import RespecError

LOGS = bench_report.ROOT / "run" / "bench_policies"
SHAPES = "1,1,2; 3,1,4; 5,1,6; 3,4,8; 5,4,16"
ADAPTIVE_SHAPE = SpeculationConfig(3, 1, 4)  # where SGLang's mode starts

EPILOG = """\
examples:
  python scripts/bench_policies.py                   # the bundled models
  python scripts/bench_policies.py --quick           # does it run here? a few minutes
  python scripts/bench_policies.py --only auto --only plain --alive 2
  python scripts/bench_policies.py --from docs/results/policies_cpu.json --update-readme
  python scripts/bench_policies.py --model-path MODEL --drafter-path DRAFTER --alive 1 \\
      --server-args "--tp-size 4"                    # on a GPU node
"""


def main() -> int:
    return measure_and_show(parse_options(), run, report, "policies", LOGS)


def run(options: argparse.Namespace) -> dict[str, Any]:
    use_demo_settings(options, LOGS)
    facts = {"machine": bench_report.machine_facts(), "versions": bench_report.version_facts()}
    specs = choose(servers(options), options.only, PLAIN)
    alive = min(options.alive or default_alive(), len(specs))
    console = Console()
    console.print(f"{len(specs)} servers, {alive} at a time; logs in {LOGS}", soft_wrap=True)
    prompts = Prompts(options.model_path or str(demo_models()[0]))
    with Pool(alive, LOGS) as pool, progress_bar(console, len(specs) * options.rounds) as progress:
        bench = PolicyBench(pool, prompts, options, progress)
        for visit in visits(specs, options.rounds):
            bench.measure(*visit)
        profile = bench.profile
    return {
        "what": "output tokens/s of policies on a batch that shrinks from full to 1",
        "command": bench_report.public_text(shlex.join(["python", *sys.argv])),
        "quick": options.quick,
        **facts,
        "models": describe_models(options),
        "settings": asdict(load_config()),
        "profile": profile,
        "load": bench.load_facts(),
        "alive": alive,
        "servers": [spec.facts() for spec in specs],
        "summary": [asdict(row) for row in report.summarise(bench.measurements)],
        "goals": report.goals(bench.measurements),
        "measurements": [each.facts() for each in bench.measurements],
    }


class PolicyBench:
    """Sends the load to one server after the other and keeps what came back."""

    def __init__(
        self, pool: Pool, prompts: Prompts, options: argparse.Namespace, progress: Progress
    ) -> None:
        self._pool, self._prompts, self._progress = pool, prompts, progress
        self._options = options
        self._expected: Batch | None = None  # of whoever was first; all others must give the same
        self.measurements: list[Measurement] = []
        self.profile: dict[str, Any] | None = None

    def measure(self, spec: ServerSpec, round_: int, position: int) -> None:
        """The whole load at once."""
        task = self._progress.task_ids[0]
        self._progress.update(task, description=f"{spec.name}: round {round_ + 1}")
        requests, url = self._options.requests, self._pool.url(spec)
        warm_up(url, self._prompts, requests)
        busy = round(os.getloadavg()[0], 2)
        before = self._state(url)
        batch = generate(
            url, self._prompts(requests), self._sampling(requests), concurrency=requests
        )
        after = self._state(url)
        self._must_be_equal(spec, batch)
        if spec.name == AUTO:
            self._must_have_profile(after)
        found = measurement(spec, batch, before, after, round_, position, busy)
        self.measurements.append(found)
        self._progress.console.print(
            f"round {round_ + 1}  {spec.name:18} {found.tokens_per_s:8.1f} tokens/s, "
            f"{found.switches} changes in {found.steps} steps",
            highlight=False,
            soft_wrap=True,
        )
        self._progress.advance(task)

    def load_facts(self) -> dict[str, Any]:
        assert self._expected is not None
        lengths = [len(each.output_ids) for each in self._expected.rollouts]
        return {
            "prompts": "held-out problems of the bundled models",
            "requests": self._options.requests,
            "rounds": self._options.rounds,
            "temperature": self._options.temperature,
            "max_new_tokens": self._options.max_new_tokens,
            "answer_tokens": {
                "least": min(lengths), "median": statistics.median(lengths), "most": max(lengths),
                "all": sorted(lengths),
            },
        }  # fmt: skip

    def _sampling(self, requests: int) -> list[dict[str, Any]]:
        return [
            {
                "temperature": self._options.temperature,
                "max_new_tokens": self._options.max_new_tokens,
                "sampling_seed": seed,
            }
            for seed in range(requests)
        ]

    def _state(self, url: str) -> dict[str, Any]:
        answer = httpx.get(f"{url}/respec/state", timeout=60.0, trust_env=False)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def _must_be_equal(self, spec: ServerSpec, batch: Batch) -> None:
        if self._expected is None:
            self._expected = batch
        pairs = zip(batch.token_lists, self._expected.token_lists, strict=True)
        differ = [index for index, (mine, first) in enumerate(pairs) if mine != first]
        if differ:
            raise RespecError(
                f"{spec.name} gave other tokens than the first server in {len(differ)} of "
                f"{len(batch.rollouts)} answers, first in answer {differ[0]}; nothing is written. "
                "In bfloat16 near-ties differ; measure in float32."
            )

    def _must_have_profile(self, state: dict[str, Any]) -> None:
        self.profile = state["profile"]
        if self.profile is None:
            raise RespecError(
                "The policy auto runs without step times and would keep one shape; give --profile."
            )
        self.profile["path"] = bench_report.public_text(self.profile["path"])


def measurement(
    spec: ServerSpec,
    batch: Batch,
    before: dict[str, Any],  # the server's state
    after: dict[str, Any],
    round_: int,
    position: int,
    load_average: float,
) -> Measurement:
    old = {each["config"]: each["busy_s"] for each in before["configs"]}
    return Measurement(
        policy=spec.name,
        round=round_,
        position=position,
        tokens=batch.tokens,
        seconds=round(batch.seconds, 4),
        load_average=load_average,
        steps=after["steps"] - before["steps"],
        switches=after["switches"] - before["switches"],
        catch_up_tokens=after["catch_up_tokens"] - before["catch_up_tokens"],
        catch_up_s=after["catch_up_s"] - before["catch_up_s"],
        busy_s={
            each["config"]: round(each["busy_s"] - old.get(each["config"], 0.0), 4)
            for each in after["configs"]
        },
        decision_us=after["decision_us"],
    )


def visits(specs: Sequence[ServerSpec], rounds: int) -> Iterator[tuple[ServerSpec, int, int]]:
    """(server, round, position): every second round the other way round, each from further on."""
    for round_ in range(rounds):
        start = round_ * len(specs) // rounds
        order = [*specs[start:], *specs[:start]]
        for position, spec in enumerate(order if round_ % 2 == 0 else order[::-1]):
            yield spec, round_, position


def servers(options: argparse.Namespace) -> list[ServerSpec]:
    target = str(options.model_path or demo_models()[0])
    drafter = str(options.drafter_path or demo_models()[1])
    flags: tuple[str, ...] = ("--model-path", target)
    if cuda_devices()[0] == 0:
        flags += ("--device", "cpu", "--dtype", "float32")  # bfloat16 is slow on most CPUs
    flags += ("--max-running-requests", str(options.requests))
    flags += tuple(shlex.split(options.server_args))

    def policy(name: str, text: str, shape: SpeculationConfig, *more: str) -> ServerSpec:
        own = speculation(drafter, shape.num_steps, shape.topk, shape.num_draft_tokens)
        return ServerSpec(name, False, (*flags, *own, "--respec-policy", text, *more))

    shapes = options.shapes
    largest = SpeculationConfig(
        *(max(getattr(each, name) for each in shapes)
          for name in ("num_steps", "topk", "num_draft_tokens"))
    )  # fmt: skip
    ready = ("--respec-configs", "; ".join(str(each) for each in shapes if each != largest))
    profile = ("--respec-profile", str(options.profile)) if options.profile else ()
    return [
        policy(PLAIN, "plain", shapes[0]),
        policy(AUTO, "auto", largest, *ready, *profile),
        *(policy(f"({each})", f"always:{each}", each) for each in shapes),
        policy(SGLANG, SGLANG, ADAPTIVE_SHAPE, "--speculative-adaptive"),
    ]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=positive, help="sent at once (64)")
    add("--rounds", type=positive, help="measurements of each policy (5)")
    add("--max-new-tokens", type=positive, help="longest answer (640)")
    add("--temperature", type=float, default=1.0, help="of the requests, whose seeds are fixed (1)")
    add("--shapes", type=_shapes, default=SHAPES, metavar="S,K,N; ...", help=f"({SHAPES})")
    add("--profile", type=Path, metavar="FILE", help="the step times of the policy auto")
    add("--only", action="append", default=[], metavar="NAME", help="part of a policy's name")
    add("--quick", action="store_true", help="a tiny trial: 8 requests, 2 rounds, 48 tokens")
    add("--model-path", metavar="MODEL", help="another target than the bundled one")
    add("--drafter-path", metavar="DRAFTER", help="its EAGLE-3 drafter")
    add("--server-args", default="", metavar="FLAGS", help="flags for every server, in one text")
    add("--alive", type=positive, help="servers that run beside each other (as memory allows)")
    add("--out", type=Path, help="the result's file (docs/results/policies_<cpu or gpu>.json)")
    add("--from", dest="source", type=Path, metavar="FILE", help="measure nothing, show this file")
    add(
        "--update-readme",
        type=Path,
        nargs="?",
        const=bench_report.README,
        metavar="FILE",
        help="write the table between the policies markers of README.md, or of FILE",
    )
    options = parser.parse_args()
    if bool(options.model_path) != bool(options.drafter_path):
        parser.error("give --model-path and --drafter-path together")
    options.requests = options.requests or (8 if options.quick else 64)
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.max_new_tokens = options.max_new_tokens or (48 if options.quick else 640)
    return options


def _shapes(text: str) -> tuple[SpeculationConfig, ...]:
    try:
        return tuple(SpeculationConfig.parse(part) for part in text.split(";"))
    except RespecError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
