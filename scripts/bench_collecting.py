"""Measures what collecting rollouts costs: the same server with it and without, by turns.

Both servers run beside each other and each round asks both for the same tokens, first the one and
then the other, in the next round the other way round. It collects into a folder that this script
empties, so that no learner takes part. Tokens must be equal, or nothing is written.

    python scripts/bench_collecting.py                    # about 10 minutes on two cores
    python scripts/bench_collecting.py --batches 16 --rounds 2
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_report
import httpx
from bench_servers import Pool, ServerSpec, speculation
from bench_serving_run import Prompts
from rollouts import Batch, generate
from tqdm import tqdm

from respec_server.bundled import demo_models
from sglang_respec.learner.spool import SUFFIX

COUNTER = "sglang_respec:rollouts_total{"
BYTES = "sglang_respec:rollout_sent_bytes_total"
POLICIES = ("always:5,1,6", "plain")


def main() -> None:
    options = parse_options()
    facts = {"machine": bench_report.machine_facts(), "versions": bench_report.version_facts()}
    prompts = Prompts(options.model_path)(options.prompts)
    found = []
    with tempfile.TemporaryDirectory() as work:
        for policy in options.policies:
            folder = Path(work) / "rollouts"
            with Pool(2, Path(work)) as pool:
                specs = server_specs(options, policy, folder)
                urls = {spec.name: pool.url(spec) for spec in specs}
                found += [
                    {"policy": policy, **measure(urls, prompts, batch, options, folder)}
                    for batch in tqdm(options.batches, desc=policy, unit="batch")
                ]
                counters = read_counters(urls["collecting"])
            found[-1]["counters_of_the_server"] = counters
    result = {
        "what": "output tokens/s with collecting against without, same server, same tokens",
        "command": bench_report.public_text(shlex.join(["python", *sys.argv])),
        **facts,
        "load": {
            "prompts": options.prompts, "max_new_tokens": options.tokens,
            "temperature": 1.0, "rounds": options.rounds,
        },
        "servers": [each.facts() for each in server_specs(options, "POLICY", Path("FOLDER"))],
        "found": found,
    }  # fmt: skip
    path = options.out or bench_report.result_path("collecting")
    bench_report.write_json(path, result)
    for row in found:
        print(
            f"{row['policy']:>14}, batch {row['batch']:>3}: {row['ratio']['median']:.3f} of the "
            f"speed ({row['ratio']['low']:.3f} to {row['ratio']['high']:.3f})"
        )
    print(path.name)


def parse_options() -> argparse.Namespace:
    target, drafter = demo_models()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", default=str(target))
    parser.add_argument("--drafter-path", default=str(drafter))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, default=64, help="of each batch size and round")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fraction", type=float, default=1.0, help="share that is collected")
    parser.add_argument("--out", type=Path, help="default: docs/results/collecting_*.json")
    return parser.parse_args()


def server_specs(options: argparse.Namespace, policy: str, folder: Path) -> list[ServerSpec]:
    common = (
        *("--model-path", options.model_path, "--dtype", options.dtype, "--enable-metrics"),
        *("--max-running-requests", str(max(options.batches)), "--respec-policy", policy),
        *speculation(options.drafter_path, 5, 1, 6),
    )
    # No limit but the share: what is measured is the cost of collecting all of it.
    collect = (
        *("--respec-samples-to", str(folder), "--respec-samples-mb-per-s", "0"),
        *("--respec-samples-fraction", str(options.fraction)),
    )
    return [
        ServerSpec("without", False, common),
        ServerSpec("collecting", False, (*common, *collect)),
    ]


def measure(
    urls: dict[str, str],
    prompts: list[list[int]],
    batch: int,
    options: argparse.Namespace,
    folder: Path,
) -> dict[str, Any]:
    """Tokens/s of both, round by round; the first round warms up and is left out."""
    speeds: dict[str, list[float]] = {name: [] for name in urls}
    collected = 0
    for number in range(options.rounds + 1):
        answers: dict[str, Batch] = {}
        for name in sorted(urls, reverse=bool(number % 2)):
            answers[name] = run(urls[name], prompts, batch, number, options)
            collected += empty(folder)
        if answers["without"].token_lists != answers["collecting"].token_lists:
            raise SystemExit("The two servers gave other tokens; nothing is written.")
        if number:
            for name, answer in answers.items():
                speeds[name].append(answer.tokens_per_second)
    pairs = zip(speeds["collecting"], speeds["without"], strict=True)
    ratios = [mine / other for mine, other in pairs]
    return {
        "batch": batch,
        "tokens_per_second": {n: [round(e, 1) for e in each] for n, each in speeds.items()},
        "ratio": {
            "median": round(statistics.median(ratios), 4),
            "low": round(min(ratios), 4),
            "high": round(max(ratios), 4),
        },
        "bytes_in_chunks": collected,
    }


def run(
    url: str, prompts: list[list[int]], batch: int, number: int, options: argparse.Namespace
) -> Batch:
    sampling = [
        {
            "temperature": 1.0, "max_new_tokens": options.tokens, "ignore_eos": True,
            "sampling_seed": 1000 * number + i,
        }
        for i in range(len(prompts))
    ]  # fmt: skip
    # What a chat template shares would be cached by the first round and not by later ones.
    httpx.post(f"{url}/flush_cache", timeout=60, trust_env=False).raise_for_status()
    return generate(url, prompts, sampling, concurrency=batch)


def empty(folder: Path) -> int:
    """Bytes of the chunks that lay there."""
    size = 0
    for path in folder.glob(f"*{SUFFIX}"):
        size += path.stat().st_size
        path.unlink()
    return size


def read_counters(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics", timeout=60, trust_env=False).text
    return {
        line.split('what="')[1].split('"')[0] if line.startswith(COUNTER) else "sent_bytes":
            float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith((COUNTER, BYTES))
    }  # fmt: skip


if __name__ == "__main__":
    main()
