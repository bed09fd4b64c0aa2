"""Generates with the demo target: batched, with a cache, dropping finished rows as it goes."""

from collections.abc import Sequence

import torch
from demo.data import Sample, prompt_ids
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedTokenizerBase, Qwen2ForCausalLM

from sglang_respec.demo_task import Problem

MAX_NEW_TOKENS = 640
BATCH_ROWS = 128


@torch.inference_mode()
def rollout(
    target: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    temperature: float,
    seed: int = 0,
) -> list[Sample]:
    """One answer per problem, in the order given. Temperature 0 is greedy."""
    generator = torch.Generator().manual_seed(seed)
    prompts = prompt_ids(tokenizer, problems)
    # Long problems first: neighbours finish together and the last batches are the cheap ones.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    answers: dict[int, list[int]] = {}
    starts = range(0, len(order), BATCH_ROWS)
    for first in tqdm(starts, desc=f"rollouts at T={temperature:g}", unit="batch", leave=False):
        rows = order[first : first + BATCH_ROWS]
        batch = [prompts[i] for i in rows]
        answers.update(zip(rows, _generate(target, batch, temperature, generator), strict=True))
    return [Sample(prompt, answers[i]) for i, prompt in enumerate(prompts)]


def _generate(
    target: Qwen2ForCausalLM,
    prompts: list[list[int]],
    temperature: float,
    generator: torch.Generator,
) -> list[list[int]]:
    tokens, mask = _pad_left(prompts)
    cache = DynamicCache(config=target.config)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # the prompt behind each row still running
    positions = mask.cumsum(1).sub(1).clamp(min=0)
    for _ in range(MAX_NEW_TOKENS):
        output = target(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = _choose(output.logits[:, -1], temperature, generator)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            answers[row].append(token)
        running = (chosen != target.config.eos_token_id).nonzero()[:, 0]
        if len(running) == 0:
            break
        if len(running) < len(rows):
            cache.batch_select_indices(running)
            rows = [rows[i] for i in running.tolist()]
        tokens = chosen[running, None]
        mask = torch.cat([mask[running], torch.ones(len(rows), 1, dtype=mask.dtype)], dim=1)
        positions = positions[running, -1:] + 1
    return answers


def _pad_left(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return tokens, mask


def _choose(
    logits: Tensor,  # [B, V]
    temperature: float,
    generator: torch.Generator,
) -> Tensor:  # [B] int64
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
