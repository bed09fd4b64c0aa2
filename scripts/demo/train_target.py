"""Trains the demo target on worked answers: short ones first, what is free in them counting less.

Both are for speed: a step is easier found by its letter among three than among twenty, and most
tokens of an answer are free wording, whose gradient is mostly noise.
"""

import random
import re
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from demo.data import Batch, worked_batches
from demo.optimizers import Recipe, make_optimizers, update
from demo.pair import new_target
from demo.tokenizer import TURN_END
from torch import Tensor
from tqdm import tqdm
from transformers import AttentionInterface, PreTrainedTokenizerBase, Qwen2ForCausalLM


@dataclass(frozen=True)
class TargetRecipe:
    steps: int = 700
    short_problems: int = 8192
    free_weight: float = 0.2  # of a token that is neither digit, letter nor end
    training: Recipe = field(default_factory=Recipe)


def train_target(
    tokenizer: PreTrainedTokenizerBase, recipe: TargetRecipe, seed: int
) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    model = new_target(tokenizer)
    model.set_attn_implementation("demo_causal")
    optimizers = make_optimizers(model, recipe.training)
    batches = worked_batches(
        tokenizer, recipe.training.batch_tokens, recipe.short_problems, random.Random(seed)
    )
    weights = token_weights(tokenizer, recipe.free_weight)
    progress = tqdm(range(recipe.steps), desc="target", unit="step", mininterval=5)
    for step in progress:
        loss = answer_loss(model, next(batches), weights)
        loss.backward()
        update(model, optimizers, step / recipe.steps, recipe.training)
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    model.set_attn_implementation("sdpa")
    return model.eval()


def token_weights(tokenizer: PreTrainedTokenizerBase, free_weight: float) -> Tensor:  # [V]
    """1 for the tokens that the problem decides: digits and steps, letters, what ends an answer."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    decided = re.compile(rf".*\d|[a-z]|Answer|{re.escape(TURN_END)}", re.DOTALL)
    return torch.tensor([1.0 if decided.fullmatch(text) else free_weight for text in texts])


def answer_loss(
    model: Qwen2ForCausalLM,
    batch: Batch,
    weights: Tensor,  # [V]
) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state
        chosen = batch.predicts_answer[:, :-1]
        logits = model.lm_head(hidden[:, :-1][chosen])
    return F.cross_entropy(logits.float(), batch.tokens[:, 1:][chosen], weight=weights)


def causal_attention(
    module: torch.nn.Module,
    query: Tensor,  # [B, N, T, E]
    key: Tensor,  # [B, K, T, E]
    value: Tensor,  # [B, K, T, E]
    attention_mask: None,
    **_: object,
) -> tuple[Tensor, None]:
    """Written out because the fused kernel's backward pass takes twice as long in bfloat16 on a
    CPU at these lengths (and half of a training step). Padding on the right needs no mask."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    length = query.shape[2]
    future = torch.full((length, length), -1e4, dtype=query.dtype).triu(1)
    scores = query @ key.transpose(-1, -2) * query.shape[3] ** -0.5 + future
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register("demo_causal", causal_attention)
