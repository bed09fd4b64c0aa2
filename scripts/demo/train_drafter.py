"""Distils the demo drafter from the target's own rollouts."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from demo.data import Batch, Sample, sorted_batches
from demo.optimizers import Recipe, make_optimizers, update
from demo.pair import AUX_LAYERS, DRAFT_VOCAB_SIZE, new_drafter
from demo.problems import training_problem
from demo.rollout import rollout
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from sglang_respec.learner.eagle3 import Eagle3Drafter
from sglang_respec.learner.objective import DistillBatch, distill, restrict_to_draft_vocab

FIRST_SEED = 10_000_000  # past every problem the target was trained on
UNROLLED_STEPS = 5  # as many as a chain of 5 drafts
STEP_DECAY = 0.9


@dataclass(frozen=True)
class DrafterRecipe:
    rollouts: int = 2000
    greedy_share: float = 0.3
    steps: int = 400
    training: Recipe = field(default_factory=Recipe)


def collect_rollouts(
    target: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    recipe: DrafterRecipe,
    seed: int,
) -> list[Sample]:
    problems = [training_problem(FIRST_SEED + i) for i in range(recipe.rollouts)]
    greedy = round(recipe.greedy_share * recipe.rollouts)
    return [
        *rollout(target, tokenizer, problems[:greedy], temperature=0.0),
        *rollout(target, tokenizer, problems[greedy:], temperature=1.0, seed=seed),
    ]


def train_drafter(
    target: Qwen2ForCausalLM, rollouts: Sequence[Sample], recipe: DrafterRecipe, seed: int
) -> Eagle3Drafter:
    torch.manual_seed(seed)
    drafter = new_drafter(target, most_frequent_tokens(rollouts))
    optimizers = make_optimizers(drafter, recipe.training)
    rng = random.Random(seed)
    epoch: Iterator[Batch] = iter(())
    progress = tqdm(range(recipe.steps), desc="drafter", unit="step", mininterval=5)
    for step in progress:
        try:
            batch = next(epoch)
        except StopIteration:
            epoch = sorted_batches(rollouts, recipe.training.batch_tokens, rng)
            batch = next(epoch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            shown = show_target(target, drafter, batch)
            objective = distill(drafter, shown, UNROLLED_STEPS, STEP_DECAY)
        objective.loss.backward()
        update(drafter, optimizers, step / recipe.steps, recipe.training)
        if step % 20 == 0:
            rates = " ".join(f"{rate:.2f}" for rate in objective.agreement.tolist())
            progress.set_postfix(loss=f"{objective.loss.item():.3f}", agreement=rates)
    return drafter.eval()


def most_frequent_tokens(rollouts: Sequence[Sample]) -> Tensor:  # [D] int64, ascending
    """The draft vocabulary: what the target says, then the lowest ids to fill up."""
    counts = Counter(token for sample in rollouts for token in sample.answer_ids)
    ranked = [token for token, _ in counts.most_common(DRAFT_VOCAB_SIZE)]
    unused = (token for token in range(2 * DRAFT_VOCAB_SIZE) if token not in counts)
    ranked += [next(unused) for _ in range(DRAFT_VOCAB_SIZE - len(ranked))]
    return torch.tensor(sorted(ranked))


@torch.no_grad()
def show_target(target: Qwen2ForCausalLM, drafter: Eagle3Drafter, batch: Batch) -> DistillBatch:
    output = target.model(input_ids=batch.tokens, output_hidden_states=True, use_cache=False)
    logits = target.lm_head(output.last_hidden_state)
    return DistillBatch(
        tokens=batch.tokens,
        aux=auxiliary_states(output.hidden_states),
        target_probs=restrict_to_draft_vocab(logits, drafter.draft_ids),
        scored=batch.predicts_answer,
        weights=torch.ones(len(batch.tokens)),
    )


def auxiliary_states(hidden_states: Sequence[Tensor]) -> Tensor:  # [B, T, A*H]
    """What SGLang captures: the residual stream *before* each auxiliary layer, which is what
    transformers lists under that layer's index."""
    return torch.cat([hidden_states[layer] for layer in AUX_LAYERS], dim=-1)
