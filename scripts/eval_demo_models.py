"""Measures the demo pair without a server: accuracy, lengths, entropy, accepted length.

    python scripts/eval_demo_models.py                  # writes docs/results/demo_models.json

Held-out problems only. Accepted length is that of a chain at temperature 0, bonus included.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from demo.data import Sample, sorted_batches
from demo.pair import AUX_LAYERS, DEMO_MODELS
from demo.rollout import rollout
from demo.train_drafter import auxiliary_states
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
)
from transformers.utils import logging as transformers_logging

from sglang_respec.demo_task import Problem, make_problem, reward
from sglang_respec.learner.acceptance import chain_hits, walk
from sglang_respec.learner.checkpoint import load_drafter
from sglang_respec.learner.eagle3 import Eagle3Drafter

RESULT = Path(__file__).resolve().parents[1] / "docs/results/demo_models.json"
CHAIN_STEPS = (1, 3, 5, 7)
PERCENTILES = (1, 5, 25, 50, 75, 95, 99, 100)
EVAL_BATCH_TOKENS = 8192


def main() -> None:
    options = parse_options()
    torch.set_num_threads(2)
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.models / "target")
    target: Qwen2ForCausalLM = AutoModelForCausalLM.from_pretrained(
        options.models / "target", dtype=torch.float32
    )
    embedding = target.get_input_embeddings().weight
    drafter = load_drafter(options.models / "drafter", embedding)
    problems = [make_problem(seed, "held_out") for seed in range(options.problems)]
    greedy = rollout(target, tokenizer, problems, temperature=0.0)
    sampled = rollout(target, tokenizer, problems, temperature=1.0)
    result = {
        "machine": {"cpu": cpu_name(), "torch": torch.__version__, "threads": 2},
        "held_out_problems": options.problems,
        "temperature_0": describe(tokenizer, problems, greedy),
        "temperature_1": describe(tokenizer, problems, sampled),
        "entropy_nats_per_token_at_temperature_1": mean_entropy(target, sampled),
        "accepted_length_chain_at_temperature_0": {
            str(steps): accepted_length(target, drafter, greedy, steps) for steps in CHAIN_STEPS
        },
        "aux_layers": list(AUX_LAYERS),
        "parameters": {"target": target.num_parameters(), "drafter": count_parameters(drafter)},
        "file_bytes": {
            name: (options.models / name / "model.safetensors").stat().st_size
            for name in ("target", "drafter")
        },
    }
    text = json.dumps(result, indent=2) + "\n"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    print(text)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=DEMO_MODELS)
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--output", type=Path, default=RESULT)
    options: argparse.Namespace = parser.parse_args()
    return options


def describe(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], samples: Sequence[Sample]
) -> dict[str, Any]:
    texts = tokenizer.batch_decode([s.answer_ids for s in samples], skip_special_tokens=True)
    rewards = [reward(problem, text) for problem, text in zip(problems, texts, strict=True)]
    lengths = torch.tensor([len(sample.answer_ids) for sample in samples], dtype=torch.float64)
    marks = torch.tensor(PERCENTILES, dtype=torch.float64) / 100
    quantiles = lengths.quantile(marks, interpolation="nearest").int().tolist()
    return {
        "accuracy": round(sum(rewards) / len(rewards), 4),
        "accuracy_by_steps": accuracy_by_steps(problems, rewards),
        "mean_tokens": round(lengths.mean().item(), 1),
        "token_percentiles": dict(zip(map(str, PERCENTILES), quantiles, strict=True)),
    }


def accuracy_by_steps(problems: Sequence[Problem], rewards: Sequence[float]) -> dict[str, float]:
    buckets: dict[str, list[float]] = {"1-3": [], "4-6": [], "7-12": [], "13-26": []}
    for problem, earned in zip(problems, rewards, strict=True):
        count = len(problem.steps)
        name = "1-3" if count <= 3 else "4-6" if count <= 6 else "7-12" if count <= 12 else "13-26"
        buckets[name].append(earned)
    return {name: round(sum(rows) / max(len(rows), 1), 3) for name, rows in buckets.items()}


@torch.inference_mode()
def mean_entropy(target: Qwen2ForCausalLM, samples: Sequence[Sample]) -> float:
    """Over the generated tokens, of the full next-token distribution."""
    total, count = 0.0, 0
    for batch in sorted_batches(samples, EVAL_BATCH_TOKENS):
        logits = target(input_ids=batch.tokens, use_cache=False).logits[batch.predicts_answer]
        total += torch.special.entr(logits.softmax(-1)).sum().item()
        count += len(logits)
    return round(total / count, 4)


@torch.inference_mode()
def accepted_length(
    target: Qwen2ForCausalLM, drafter: Eagle3Drafter, samples: Sequence[Sample], steps: int
) -> float:
    rounds: list[int] = []
    for sample in samples:
        tokens = torch.tensor([sample.prompt_ids + sample.answer_ids])
        states = target.model(input_ids=tokens, output_hidden_states=True, use_cache=False)
        hits = chain_hits(drafter, auxiliary_states(states.hidden_states), tokens, steps)
        rounds += walk(hits[0], len(sample.prompt_ids), len(sample))
    return round(sum(rounds) / len(rounds), 3)


def count_parameters(drafter: Eagle3Drafter) -> int:
    return sum(parameter.numel() for parameter in drafter.parameters())


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


if __name__ == "__main__":
    main()
