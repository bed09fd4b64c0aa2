"""Makes the bundled demo pair from nothing: tokenizer, target, rollouts, drafter.

    python scripts/build_demo_models.py              # about 12 minutes on two cores
    python scripts/build_demo_models.py --quick      # seconds: right shapes, weak models
    python scripts/build_demo_models.py --stage drafter   # keep the target that is there

Seeded throughout; two runs on the same machine and thread count write the same bytes. The pair
goes to ``sglang_respec/demo_models`` unless ``--output`` says otherwise.
"""

import argparse
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Spinning threads of a busy machine steal the core from the thread they wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from demo.pair import DEMO_MODELS, published_to, save_target
from demo.tokenizer import build_tokenizer
from demo.train_drafter import DrafterRecipe, collect_rollouts, train_drafter
from demo.train_target import TargetRecipe, train_target
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from sglang_respec.learner.checkpoint import save_drafter

SEED = 0
QUICK_TARGET = TargetRecipe(steps=6)
QUICK_DRAFTER = DrafterRecipe(rollouts=8, steps=4)


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    transformers_logging.disable_progress_bar()
    target_recipe = QUICK_TARGET if options.quick else TargetRecipe()
    drafter_recipe = QUICK_DRAFTER if options.quick else DrafterRecipe()
    timings: dict[str, tuple[float, float]] = {}
    if options.stage in ("all", "target"):
        with timed("target", timings):
            build_target(options.output / "target", target_recipe)
    if options.stage in ("all", "drafter"):
        build_drafter(options.output, drafter_recipe, timings)
    report(options.output, timings)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=DEMO_MODELS)
    parser.add_argument("--stage", choices=("all", "target", "drafter"), default="all")
    parser.add_argument("--threads", type=int, default=2, help="the bytes depend on it")
    parser.add_argument("--quick", action="store_true", help="try the pipeline, not the models")
    options: argparse.Namespace = parser.parse_args()
    return options


def build_target(directory: Path, recipe: TargetRecipe) -> None:
    with published_to(directory) as building:
        build_tokenizer(building)
        tokenizer = AutoTokenizer.from_pretrained(building)
        save_target(train_target(tokenizer, recipe, SEED), building)


def build_drafter(
    output: Path, recipe: DrafterRecipe, timings: dict[str, tuple[float, float]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(output / "target")
    # Read back what was stored, so that the drafter learns the rounded target that is served.
    target: Qwen2ForCausalLM = AutoModelForCausalLM.from_pretrained(
        output / "target", dtype=torch.float32
    ).requires_grad_(False)
    with timed("rollouts", timings):
        rollouts = collect_rollouts(target, tokenizer, recipe, SEED)
    with timed("drafter", timings):
        drafter = train_drafter(target, rollouts, recipe, SEED)
    with published_to(output / "drafter") as building:
        save_drafter(drafter, building)


@contextmanager
def timed(stage: str, timings: dict[str, tuple[float, float]]) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    timings[stage] = (time.perf_counter() - wall, time.process_time() - cpu)


def report(output: Path, timings: dict[str, tuple[float, float]]) -> None:
    print(f"\n{'stage':<10}{'wall s':>9}{'CPU s':>9}")
    for stage, (wall, cpu) in timings.items():
        print(f"{stage:<10}{wall:>9.1f}{cpu:>9.1f}")
    for path in sorted(output.glob("*/*")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        print(f"{path.stat().st_size:>9}  {digest}  {path.relative_to(output)}")
    print("\nNext: python scripts/eval_demo_models.py")


if __name__ == "__main__":
    main()
