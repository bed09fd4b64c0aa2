"""Reinforcement learning end to end, on a laptop: does a learner keep the drafter useful?

A small GRPO loop trains the bundled target. Its rollouts come from a real server, its new weights
go there through SGLang's own endpoint. The arms differ in nothing but how rollouts are made:

    plain             no speculation
    frozen            the bundled drafter, as it is
    learner           `respec learn` beside it, w(r) none
    learner-reward    the same, w(r) from the reward

All arms draw the same tokens, so they see the same rewards and make the same policies; this is
checked at every step. What differs is the accepted length and the speed. docs/rl-demo.md tells
what is trained and how to read the result.

    make rl-demo                                     # the four arms, one seed
    make rl-demo ARGS="--steps 20 --seeds 3 --update-docs"   # into docs/results
    make rl-demo ARGS="--ablation --steps 20 --seeds 3"      # w(r): none, reward, advantage, length
    make rl-demo ARGS="--arms plain frozen --steps 4"

An interrupted demo goes on with the runs that are missing. Those that ended are in run/rl.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

# Read when numpy and torch load; the trainer computes on one thread (rl/run.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import bench_report
from rl.records import (
    ABLATION_ARMS,
    ARMS,
    DEMO_ARMS,
    ArmRun,
    Settings,
    StepRecord,
    load_run,
    run_path,
    save_run,
)
from rl.report import ablation_table, differences, equality_line, summary_table
from tqdm import tqdm

from sglang_respec.errors import RespecError
from sglang_respec.learner.settings import settings_table

RUNS = bench_report.ROOT / "run" / "rl"
PAGE = bench_report.ROOT / "docs" / "rl-demo.md"
MARKERS = {
    "rl_demo": ("<!-- rl-demo:begin -->", "<!-- rl-demo:end -->"),
    "rl_ablation": ("<!-- rl-ablation:begin -->", "<!-- rl-ablation:end -->"),
}
# A policy that moves in a dozen steps instead of hundreds asks for a learner as quick: a larger
# rate, a look after every few updates, and no rollouts older than two policies.
LEARNER = {
    "learning-rate": "3e-4",
    "warmup-steps": "10",
    "batch-tokens": "4096",
    "least-tokens": "2048",
    "max-policy-age": "2",
    "reuse": "6",
    "judge-every": "4",
    "least-held-out": "4",
    "held-out-share": "8",
    "decay": "0.005",
    "reward-window-s": "60",
}


def main() -> int:
    options = parse_options()
    settings = settings_of(options)
    signal.signal(signal.SIGTERM, _end)
    runs = collect(options, settings)
    stem = "rl_ablation" if options.ablation else "rl_demo"
    path = options.out or (bench_report.result_path(stem) if options.update_docs else
                           RUNS / f"{stem}.json")  # fmt: skip
    image = path.with_suffix(".png")
    text = section(runs, options.ablation)
    bench_report.write_json(path, result_of(runs, settings))
    draw_figure(image, runs)
    print(f"\n{text}\n\n{path}\n{image}")
    if options.update_docs:
        shown = os.path.relpath(image, PAGE.parent)
        body = f"{text}\n\n![Reward, accepted length, speed and drafter version]({shown})"
        bench_report.insert_section(PAGE, body, MARKERS[stem])
    return 1 if differences(runs) else 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--arms", nargs="+", choices=list(ARMS), metavar="ARM",
        help=f"some of: {', '.join(ARMS)} (default: {', '.join(DEMO_ARMS)})")  # fmt: skip
    add("--ablation", action="store_true", help="the learner's arms, and a table of w(r)")
    add("--seeds", type=_positive, default=1, metavar="N", help="seeds 0 .. N-1 (%(default)s)")
    add("--steps", type=_positive, default=14, help="of the policy (%(default)s)")
    add("--prompts", type=_positive, default=8, help="of a step (%(default)s)")
    add("--samples", type=_positive, default=8, help="of a prompt (%(default)s)")
    add("--concurrency", type=_positive, default=16,
        help="requests that run at a time (%(default)s)")  # fmt: skip
    add("--learning-rate", type=float, default=3e-4, help="of the policy (%(default)s)")
    add("--learner", nargs="+", default=[], metavar="NAME=VALUE",
        help="settings of `respec learn` to change, such as learning-rate=5e-4")  # fmt: skip
    add("--again", action="store_true", help="run what has ended already once more")
    add("--out", type=Path, metavar="FILE", help="result, JSON (run/rl/rl_demo.json)")
    add("--update-docs", action="store_true", help="write docs/results and docs/rl-demo.md")
    options = parser.parse_args()
    if options.samples < 2:
        parser.error("--samples must be 2 or more: an advantage compares samples of one prompt")
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    return Settings(
        steps=options.steps, prompts=options.prompts, samples=options.samples, max_steps=8,
        max_new_tokens=320, concurrency=options.concurrency,
        learning_rate=options.learning_rate, epochs=2, clip=0.2,
        learner=learner_flags(options.learner),
    )  # fmt: skip


def learner_flags(changes: Sequence[str]) -> dict[str, str]:
    """The demo's settings of the learner, with these NAME=VALUE changed or added."""
    names = {field.name.replace("_", "-") for field in settings_table()} - {"weight"}
    pairs = [each.partition("=") for each in changes]
    for name, _, value in pairs:
        if name not in names or not value:
            raise RespecError(
                f"{name!r} is no setting of the learner, or has no value; give NAME=VALUE of those "
                "in `respec learn --help`. The arm sets the weight."
            )
    return {**LEARNER, **{name: value for name, _, value in pairs}}


def collect(options: argparse.Namespace, settings: Settings) -> list[ArmRun]:
    """Every arm with every seed: those on disk are read, the others run one after another."""
    arms = options.arms or (ABLATION_ARMS if options.ablation else DEMO_ARMS)
    runs = []
    for seed in range(options.seeds):
        for arm in arms:
            path = run_path(RUNS, settings, arm, seed)
            run = None if options.again else load_run(path)
            if run is None:
                run = perform(arm, seed, settings, path)
                save_run(path, run)
            else:
                print(f"{arm}, seed {seed}: was run already, read from {path}")
            runs.append(run)
    return runs


def perform(arm: str, seed: int, settings: Settings, path: Path) -> ArmRun:
    from rl.run import run_arm  # torch and transformers, not needed to read results
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    facts = {"machine": bench_report.machine_facts(), "versions": bench_report.version_facts()}
    with tqdm(total=settings.steps, desc=f"{arm}, seed {seed}", unit="step") as bar:
        bar.set_postfix_str("starting")

        def on_step(record: StepRecord) -> None:
            length = record.accepted_length
            bar.set_postfix_str(
                f"reward {record.reward:.2f}, {record.tokens_per_s:.0f} tokens/s"
                + (f", accepted {length:.2f}, drafter {record.drafter_version}" if length else "")
            )
            bar.update()

        return run_arm(ARMS[arm], seed, settings, path.with_suffix(""), facts, on_step)


def section(runs: Sequence[ArmRun], ablation: bool) -> str:
    """What the page shows: where it was measured, the table, and the check."""
    first = runs[0]
    machine, versions, settings = first.facts["machine"], first.facts["versions"], first.settings
    table = ablation_table(runs) if ablation else summary_table(runs)
    seeds = len({run.seed for run in runs})
    return (
        f"{machine['cpu']}, {machine['cores']} cores; torch {versions['torch']}, SGLang "
        f"{versions['sglang']}, commit {versions['commit']}; {settings.steps} policy steps of "
        f"{settings.prompts} prompts with {settings.samples} samples, {seeds} seed(s), "
        f"median (smallest to largest).\n\n{table}\n\n{equality_line(runs)}"
    )


def result_of(runs: Sequence[ArmRun], settings: Settings) -> dict[str, Any]:
    return {
        "what": "GRPO on the bundled target, arms with the same seeds",
        "command": bench_report.public_text(shlex.join(["python", *sys.argv])),
        "settings": dataclasses.asdict(settings),
        "identical_rollouts": not differences(runs),
        "runs": [
            {name: value for name, value in dataclasses.asdict(run).items() if name != "settings"}
            for run in runs
        ],
    }


def draw_figure(path: Path, runs: Sequence[ArmRun]) -> None:
    from rl.figure import draw

    cpu = runs[0].facts["machine"]["cpu"]
    same = "differ between arms" if differences(runs) else "identical in all arms"
    seeds = len({run.seed for run in runs})
    draw(path, runs, f"GRPO on the bundled target, {seeds} seed(s), {cpu}; rollouts {same}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _end(number: int, _: FrameType | None) -> None:
    """SIGTERM stops every process as Ctrl-C does: on the way out of `with`."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RespecError as error:
        sys.exit(f"rl-demo: {error}")
    except KeyboardInterrupt:
        sys.exit("rl-demo: interrupted; run it again to go on with what is missing")
