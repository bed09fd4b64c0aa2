"""Asks plain and speculative servers for the same rollouts and counts those that differ.

    python scripts/check_equality.py                     # float32: none may differ
    python scripts/check_equality.py --dtype bfloat16    # how often near-ties flip, a figure

Every kind of sampling at every temperature (see sampling_kinds.py), `--requests` of each,
`--tokens` long, all kinds mixed in one running batch. Plain decoding is this server without a
drafter; against it stand a chain, a tree, and smaller ones with a drafter of random weights. In
float32 a single different token makes the command fail. Answers are kept in `--keep`, so the same
command goes on where it was interrupted; `--fresh` forgets them.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from answer_store import AnswerStore, Kept, split
from bench_report import (
    machine_facts,
    markdown_table,
    result_path,
    version_facts,
    write_json,
)
from bench_servers import Pool, ServerSpec, speculation
from bench_serving_run import Prompts
from random_drafter import write_random_drafter
from rollouts import Batch, generate
from sampling_kinds import KINDS, SAMPLES, mixed_batch
from tqdm import tqdm

from respec_server.bundled import demo_models

SHAPES = {"chain": (5, 1, 6), "tree": (4, 4, 12)}
# Hardly anything is accepted of a random drafter: deeper shapes cost hours and try nothing more.
RANDOM_SHAPES = {"random chain": (2, 1, 3), "random tree": (2, 3, 6)}
CHUNK = 256  # requests sent together, so that the progress bar moves

Lists = list[tuple[int, ...]]


def main() -> None:
    options = parse_options()
    if options.fresh:
        shutil.rmtree(options.keep, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, Pool(1, Path(folder)) as pool:
        servers = server_specs(options)
        asked = ask_for(options)
        answers: dict[str, Batch] = {}
        commits: set[str] = set()
        for server in servers:
            answers[server.name] = collect(pool, server, asked, options, commits)
    cells = {
        server.name: compare(answers["plain"], answers[server.name], options.requests)
        for server in servers[1:]
    }
    report(cells, answers)
    if options.json:
        write_json(options.json, facts(servers, cells, answers, commits, options))
        print(f"\nWritten: {options.json.name}")
    differ = sum(cell["differ"] for kinds in cells.values() for cell in kinds.values())
    if differ and options.dtype == "float32":
        sys.exit(f"{differ} rollouts differ from plain decoding; float32 allows none.")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    target, drafter = demo_models()
    parser.add_argument("--model-path", default=str(target))
    parser.add_argument("--drafter-path", default=str(drafter))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    parser.add_argument("--tokens", type=int, default=128, help="of each rollout")
    parser.add_argument("--concurrency", type=int, default=96)
    parser.add_argument(
        "--only", nargs="*", default=(), help="names of servers: chain, tree, random chain, ..."
    )
    parser.add_argument(
        "--keep", type=Path, default=Path("run/check_equality"), help="folder of kept answers"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the kept answers first")
    parser.add_argument("--json", type=Path, help="default: docs/results/equality_<dtype>_*.json")
    options = parser.parse_args()
    options.json = options.json or result_path(f"equality_{options.dtype}")
    return options


def server_specs(options: argparse.Namespace) -> list[ServerSpec]:
    common = (
        *("--model-path", options.model_path, "--dtype", options.dtype),
        *("--max-running-requests", str(options.concurrency)),
    )
    options.keep.mkdir(parents=True, exist_ok=True)
    knows_nothing = write_random_drafter(
        Path(options.drafter_path), options.keep / "random-drafter"
    )
    speculative = [
        ServerSpec(name, False, (*common, *speculation(str(drafter), *shape)))
        for drafter, shapes in ((options.drafter_path, SHAPES), (knows_nothing, RANDOM_SHAPES))
        for name, shape in shapes.items()
    ]
    wanted = [each for each in speculative if not options.only or each.name in options.only]
    return [ServerSpec("plain", False, common), *wanted]


def ask_for(options: argparse.Namespace) -> tuple[list[list[int]], list[dict[str, Any]]]:
    return mixed_batch(Prompts(options.model_path)(256), options.requests, options.tokens)


def collect(
    pool: Pool,
    server: ServerSpec,
    asked: tuple[list[list[int]], list[dict[str, Any]]],
    options: argparse.Namespace,
    commits: set[str],
) -> Batch:
    """The server's answers to all of it. commits: gains those that answered."""
    prompts, sampling = asked
    store = AnswerStore(options.keep, server, [asked, CHUNK])
    # In random order, so that requests of the most different needs share each batch.
    order = random.Random(0).sample(range(len(prompts)), len(prompts))
    rollouts: list[Any] = [None] * len(prompts)
    seconds = 0.0
    with tqdm(total=len(prompts), desc=server.name, unit="request") as progress:
        for start in range(0, len(order), CHUNK):
            part = order[start : start + CHUNK]
            kept = store.load(part)
            if kept is None:
                batch = generate(
                    pool.url(server),
                    [prompts[i] for i in part],
                    [sampling[i] for i in part],
                    concurrency=options.concurrency,
                    timeout_s=3600,
                )
                samples = split(batch, [sampling[i].get("n", 1) for i in part])
                kept = Kept(samples, batch.seconds, str(version_facts()["commit"]))
                store.save(part, kept)
            for i, answer in zip(part, kept.samples, strict=True):
                rollouts[i] = answer
            seconds += kept.seconds
            commits.add(kept.commit)
            progress.update(len(part))
    return Batch([rollout for samples in rollouts for rollout in samples], seconds)


def compare(plain: Batch, other: Batch, requests: int) -> dict[str, dict[str, int]]:
    """By kind: rollouts, tokens of plain decoding, and rollouts that differ from it."""
    cells, at = {}, 0
    for kind in KINDS:
        size = requests // SAMPLES[kind] * SAMPLES[kind]
        mine, theirs = plain.token_lists[at : at + size], other.token_lists[at : at + size]
        cells[kind] = {
            "rollouts": size,
            "tokens": sum(map(len, mine)),
            "differ": sum(a != b for a, b in zip(mine, theirs, strict=True)),
        }
        at += size
    assert at == len(plain.rollouts) == len(other.rollouts)
    return cells


def report(cells: dict[str, dict[str, dict[str, int]]], answers: dict[str, Batch]) -> None:
    header = ["rollouts that differ from plain", *cells]
    rows = [
        [kind, *(f"{cells[server][kind]['differ']} of {cells[server][kind]['rollouts']}"
                 for server in cells)]
        for kind in KINDS
    ]  # fmt: skip
    lengths = ["accepted length", *(f"{answers[each].accepted_length:.2f}" for each in cells)]
    print("\n" + markdown_table(header, [*rows, lengths]))


def facts(
    servers: Sequence[ServerSpec],
    cells: dict[str, dict[str, dict[str, int]]],
    answers: dict[str, Batch],
    commits: set[str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    return {
        "machine": machine_facts(),
        "versions": version_facts(),
        "dtype": options.dtype,
        "requests_per_kind": options.requests,
        "tokens_per_rollout": options.tokens,
        "running_at_a_time": options.concurrency,
        "servers": [server.facts() for server in servers],
        "accepted_length": {
            name: round(batch.accepted_length, 3)
            for name, batch in answers.items()
            if name != "plain"
        },
        "answered_by_commits": sorted(commits),
        "seconds": {name: round(each.seconds, 1) for name, each in answers.items()},
        "kinds": KINDS,
        "cells": cells,
    }


if __name__ == "__main__":
    main()
