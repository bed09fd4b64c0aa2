"""Measures policies end to end on a load as RL has it: many requests at once, some of them long.

Every policy runs in a server of its own, of our code: the planner, plain decoding, each single
shape, and SGLang's adaptive mode. All are sent the same requests at once, whose answers end one
after the other, so that the batch shrinks from full to 1. A ratio compares two measurements of the
same round. Nothing is written unless every policy gave the same tokens.

Where all servers fit beside each other, on a CPU, all have the load at the same time and run in
slices of seconds, one after the other, so that what else runs on the machine meets all of them; a
load takes the time that its server was let run. A step in which a slice ends seems to last as long
as the slices of all others: only `auto` looks at the time of its steps, so this can harm nobody
else. Elsewhere one server is driven at a time. The order alternates from round to round.

Writes docs/results/policies_<cpu or gpu>.json, a plot beside it, and prints the table.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
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
from bench_serving_run import Prompts, load_average, progress_bar, rotated, warm_up
from rich.console import Console
from rich.progress import Progress
from rollouts import Batch, generate
from time_slices import take_turns

from respec_server.bundled import demo_models
from respec_server.device import cuda_devices
from sglang_respec.config import load_config
from sglang_respec.core import SpeculationConfig
from sglang_respec.errors import RespecError

LOGS = bench_report.ROOT / "run" / "bench_policies"
SHAPES = "1,1,2; 3,1,4; 5,1,6; 3,4,8; 5,4,16"
SLICE_S = 2.0  # long beside a step, whose time one in so many steps of `auto` is wrong
ADAPTIVE_SHAPE = SpeculationConfig(3, 1, 4)  # where SGLang's mode starts

EPILOG = """\
examples:
  python scripts/bench_policies.py                   # the bundled models
  python scripts/bench_policies.py --quick           # does it run here? a few minutes
  python scripts/bench_policies.py --only auto --only plain
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
    in_slices = alive == len(specs) and cuda_devices()[0] == 0
    prompts = Prompts(options.model_path or str(demo_models()[0]))
    with progress_bar(console, len(specs) * options.rounds) as progress:
        bench = PolicyBench(prompts, options, progress)
        for rounds in generations(options.rounds, options.starts):
            with Pool(alive, LOGS) as pool:
                for round_ in rounds:
                    order = visiting_order(specs, round_, options.rounds)
                    if in_slices:
                        bench.measure_in_slices(pool, order, round_)
                    else:
                        bench.measure_in_turn(pool, order, round_)
    return {
        "what": "output tokens/s of policies on a batch that shrinks from full to 1",
        "command": bench_report.public_text(shlex.join(["python", *sys.argv])),
        "quick": options.quick,
        **facts,
        "models": describe_models(options),
        "settings": asdict(load_config()),
        "profile": bench.profile,
        "load": bench.load_facts() | {"slice_s": options.slice_s if in_slices else None},
        "alive": alive,
        "servers": [spec.facts() for spec in specs],
        "summary": [asdict(row) for row in report.summarise(bench.measurements)],
        "goals": report.goals(bench.measurements),
        "measurements": [each.facts() for each in bench.measurements],
    }


class PolicyBench:
    """Sends the whole load at once to every server, and keeps what came back."""

    def __init__(self, prompts: Prompts, options: argparse.Namespace, progress: Progress) -> None:
        self._prompts, self._progress = prompts, progress
        self._options = options
        self._expected: Batch | None = None  # of whoever was first; all others must give the same
        self.measurements: list[Measurement] = []
        self.profile: dict[str, Any] | None = None

    def measure_in_turn(self, pool: Pool, order: Sequence[ServerSpec], round_: int) -> None:
        """One server after the other."""
        for position, spec in enumerate(order):
            self._say(f"{spec.name}: round {round_ + 1}")
            url = pool.url(spec)
            before, busy = self._ready(url), load_average()
            batch = self._load(url)
            self._note(spec, url, batch, batch.seconds, before, round_, position, busy)

    def measure_in_slices(self, pool: Pool, order: Sequence[ServerSpec], round_: int) -> None:
        """All servers at the same time; see `time_slices`."""
        self._say(f"round {round_ + 1}: starting")
        urls = [pool.url(spec) for spec in order]
        before, busy = [self._ready(url) for url in urls], load_average()
        self._say(f"round {round_ + 1}: all in slices")
        loads = [partial(self._load, url) for url in urls]
        sliced = take_turns([pool.pid(spec) for spec in order], loads, self._options.slice_s)
        for position, (spec, each) in enumerate(zip(order, sliced, strict=True)):
            self._note(spec, urls[position], each.result, each.seconds, before[position],
                       round_, position, busy)  # fmt: skip

    def _ready(self, url: str) -> dict[str, Any]:
        """The server's state, once it is awake and its cache empty."""
        warm_up(url, self._prompts, self._options.requests)
        return self._state(url)

    def _load(self, url: str) -> Batch:
        requests = self._options.requests
        return generate(
            url, self._prompts(requests), self._sampling(requests), concurrency=requests
        )

    def _note(
        self,
        spec: ServerSpec,
        url: str,
        batch: Batch,
        seconds: float,  # that the server ran; less than those of the batch if it took turns
        before: dict[str, Any],
        round_: int,
        position: int,
        load_average: float,
    ) -> None:
        """What came back, written down, once its tokens are seen to be the right ones."""
        after = self._state(url)
        self._must_be_equal(spec, batch)
        if spec.name == AUTO:
            self._must_have_profile(after)
        found = measurement(
            spec, batch.tokens, seconds, before, after, round_, position, load_average
        )
        self.measurements.append(found)
        self._progress.console.print(
            f"round {round_ + 1}  {spec.name:18} {found.tokens_per_s:8.1f} tokens/s, "
            f"{found.switches} changes in {found.steps} steps",
            highlight=False,
            soft_wrap=True,
        )
        self._progress.advance(self._progress.task_ids[0])

    def _say(self, description: str) -> None:
        self._progress.update(self._progress.task_ids[0], description=description)

    def load_facts(self) -> dict[str, Any]:
        assert self._expected is not None
        lengths = [len(each.output_ids) for each in self._expected.rollouts]
        return {
            "prompts": "held-out problems of the bundled models",
            "requests": self._options.requests,
            "rounds": self._options.rounds,
            "starts": self._options.starts,
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
    tokens: int,
    seconds: float,
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
        tokens=tokens,
        seconds=round(seconds, 4),
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


def visiting_order(specs: Sequence[ServerSpec], round_: int, rounds: int) -> list[ServerSpec]:
    """Each round begins further on, every second one goes the other way round."""
    order = rotated(specs, round_, rounds)
    return order if round_ % 2 == 0 else order[::-1]


def generations(rounds: int, starts: int) -> list[list[int]]:
    """The rounds of each generation of servers: all of them, in order, in `starts` fair shares.

    starts: at most as many as rounds.
    """
    found: list[list[int]] = [[] for _ in range(starts)]
    for round_ in range(rounds):
        found[round_ * len(found) // rounds].append(round_)
    return found


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
    add("--starts", type=positive, default=1, help="times that all servers start anew (1)")
    add("--slice-s", type=float, default=SLICE_S, metavar="SECONDS",
        help=f"how long a server runs before the next one does, on a CPU ({SLICE_S})")  # fmt: skip
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
    options.starts = min(options.starts, options.rounds)
    if options.slice_s <= 0.0:
        parser.error("--slice-s takes seconds above 0")
    options.max_new_tokens = options.max_new_tokens or (48 if options.quick else 640)
    return options


def _shapes(text: str) -> tuple[SpeculationConfig, ...]:
    try:
        return tuple(SpeculationConfig.parse(part) for part in text.split(";"))
    except RespecError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
