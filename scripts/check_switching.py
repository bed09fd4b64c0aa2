"""Holds 500 rollouts to those of plain decoding while the server switches at random.

    python scripts/check_switching.py

Half of the requests are greedy, half are sampled at temperature 1, each with its seed. Lengths
are random, requests join while others run, some are aborted, and the KV pool is too small for
all, so that they wait for each other. The policy `fuzz` changes every few steps between plain
decoding, chains and a tree; prefills leave the drafter behind. In float32 a single different token
makes the command fail.

Writes docs/results/switching_<cpu or gpu>.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_report
import httpx
from bench_servers import Pool, ServerSpec, speculation
from bench_serving_run import Prompts

from respec_server.bundled import demo_models
from sglang_respec.errors import RespecError

LOGS = bench_report.ROOT / "run" / "check_switching"
OWN, OTHERS = (5, 4, 16), "3,1,4; 5,1,6; 3,2,6"


@dataclass(frozen=True)
class Ask:
    """One request, and after how long it is aborted, if it is."""

    prompt: list[int]
    sampling: dict[str, Any]
    abort_after_s: float | None


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = parse_options()
    try:
        result = run(options)
    except (RespecError, httpx.HTTPError) as error:
        sys.stderr.write(f"check_switching: {error}\n")
        return 1
    path = options.out or bench_report.result_path("switching")
    bench_report.write_json(path, result)
    print(json.dumps(result["found"], indent=1) + f"\n{path}")
    return 1 if result["found"]["differ"] else 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / "steps.jsonl"
    log.write_text("", encoding="utf-8")
    specs = servers(options, log)
    asks = make_asks(Prompts(str(demo_models()[0]))(128), options.requests, options.seed)
    answers = []
    with Pool(1, LOGS) as pool:
        for spec in specs:
            url = pool.url(spec)
            print(f"{spec.name}: {len(asks)} requests")
            answers.append(asyncio.run(ask_all(url, asks, options.concurrency)))
    return {
        "what": "rollouts of a server that switches at random, against plain decoding",
        "machine": bench_report.machine_facts(),
        "versions": bench_report.version_facts(),
        "seed": options.seed,
        "concurrency": options.concurrency,
        "servers": [spec.facts() for spec in specs],
        "found": found(asks, answers[0], answers[1], read(log))
        | {"retractions": (LOGS / "switching.log").read_text(encoding="utf-8").count("Retract")},
    }


def servers(options: argparse.Namespace, log: Path) -> list[ServerSpec]:
    target, drafter = map(str, demo_models())
    common: tuple[str, ...] = ("--model-path", target, "--dtype", "float32")
    common += ("--max-running-requests", str(options.concurrency))
    common += ("--chunked-prefill-size", "64", "--max-total-tokens", "1100")
    common += ("--schedule-conservativeness", "0.1")
    fuzz = ("--respec-policy", f"fuzz:{options.seed}", "--respec-configs", OTHERS)
    tap = ("--respec-tap-window", "64", "--respec-plain-prefill", "tap")
    switching = (*common, *speculation(drafter, *OWN), *fuzz, *tap, "--respec-step-log", str(log))
    return [ServerSpec("plain", False, common), ServerSpec("switching", False, switching)]


def make_asks(prompts: list[list[int]], count: int, seed: int) -> list[Ask]:
    draw = random.Random(seed)
    asks = []
    for number in range(count):
        sampling = {
            "temperature": float(number % 2),
            "sampling_seed": number,
            "max_new_tokens": int(2 ** draw.uniform(3, 8)),  # 8 to 256, most of them short
            "ignore_eos": True,
        }
        abort = draw.uniform(0.02, 0.5) if draw.random() < 0.1 else None
        asks.append(Ask(draw.choice(prompts), sampling, abort))
    return asks


async def ask_all(url: str, asks: list[Ask], concurrency: int) -> list[tuple[int, ...]]:
    """Every request's tokens, those before its abort where it was aborted."""
    gate = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=limits, trust_env=False
    ) as client:

        async def one(number: int, ask: Ask) -> tuple[int, ...]:
            rid = (
                f"switching-{number:05d}"  # SGLang aborts whatever begins with the text it is told
            )
            body = {"input_ids": ask.prompt, "sampling_params": ask.sampling, "rid": rid}
            async with gate:
                running = asyncio.create_task(client.post("/generate", json=body))
                if ask.abort_after_s is not None:
                    await asyncio.sleep(ask.abort_after_s)
                    await client.post("/abort_request", json={"rid": rid})
                answer = await running
            return tuple(answer.json().get("output_ids", ()))

        return list(await asyncio.gather(*(one(i, ask) for i, ask in enumerate(asks))))


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def found(
    asks: list[Ask],
    plain: list[tuple[int, ...]],
    switching: list[tuple[int, ...]],
    steps: list[dict[str, Any]],
) -> dict[str, Any]:
    """An aborted request must agree as far as both came; others to the end."""
    differ, aborted = [], 0
    for number, (ask, mine, theirs) in enumerate(zip(asks, switching, plain, strict=True)):
        short = min(len(mine), len(theirs)) if ask.abort_after_s is not None else None
        aborted += short is not None and len(mine) < ask.sampling["max_new_tokens"]
        if mine[:short] != theirs[:short]:
            differ.append(number)
    configs = [step["config"] for step in steps]
    changes = sum(a != b for a, b in itertools.pairwise(configs))
    return {
        "rollouts": len(asks),
        "greedy": sum(ask.sampling["temperature"] == 0 for ask in asks),
        "aborted_while_switching": aborted,
        "tokens": sum(map(len, switching)),
        "differ": len(differ),
        "first_that_differ": differ[:10],
        "steps": len(steps),
        "steps_by_config": {each: configs.count(each) for each in sorted(set(configs))},
        "changes": changes,
        "catch_up_tokens": sum(step["catch_up_tokens"] for step in steps),
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=int, default=500, help="(500)")
    add("--concurrency", type=int, default=48, help="requests running at a time (48)")
    add("--seed", type=int, default=1, help="of the lengths, the aborts and the policy (1)")
    add("--out", type=Path, help="the result's file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
