"""Tokenised demo problems, cut into padded batches of similar length."""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from demo.problems import training_problem
from demo.tokenizer import TURN_END
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sglang_respec.demo_task import MAX_STEPS, Problem, worked_answer

POOL_PROBLEMS = 512  # sorted by length together, so that a batch holds little padding
FIRST_LIMIT = 3  # steps of the longest problem when training begins


@dataclass(frozen=True)
class Sample:
    prompt_ids: list[int]
    answer_ids: list[int]  # ends with <|im_end|> if the answer was finished

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Batch:
    tokens: Tensor  # [B, T] int64, padded on the right
    predicts_answer: Tensor  # [B, T] bool: the token after this one belongs to the answer


def prompt_ids(tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]) -> list[list[int]]:
    texts = [
        tokenizer.apply_chat_template(p.messages, add_generation_prompt=True, tokenize=False)
        for p in problems
    ]
    ids: list[list[int]] = tokenizer(texts)["input_ids"]
    return ids


def worked_samples(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], rng: random.Random
) -> list[Sample]:
    """Right answers in random legal forms, for the target to learn from."""
    answers = [worked_answer(problem, rng) + TURN_END for problem in problems]
    prompts = prompt_ids(tokenizer, problems)
    answer_ids = tokenizer(answers)["input_ids"]
    return [Sample(*pair) for pair in zip(prompts, answer_ids, strict=True)]


def worked_batches(
    tokenizer: PreTrainedTokenizerBase, batch_tokens: int, short_problems: int, rng: random.Random
) -> Iterator[Batch]:
    """An endless stream over fresh training problems; no problem number is drawn twice.

    Among the first ``short_problems`` the longest has few steps at first, then ever more.
    """
    for first in itertools.count(0, POOL_PROBLEMS):
        limit = longest_allowed(first / short_problems)
        numbers = range(first, first + POOL_PROBLEMS)
        pool = worked_samples(tokenizer, [training_problem(n, limit) for n in numbers], rng)
        yield from sorted_batches(pool, batch_tokens, rng)


def longest_allowed(done: float) -> int:
    """Steps of the longest problem after a share ``done`` of the short ones: geometric."""
    return math.ceil(FIRST_LIMIT * (MAX_STEPS / FIRST_LIMIT) ** min(done, 1.0))


def sorted_batches(
    samples: Sequence[Sample], batch_tokens: int, rng: random.Random | None = None
) -> Iterator[Batch]:
    """Batches of neighbours in length, each at most ``batch_tokens`` with padding.

    In random order if ``rng`` is given.
    """
    groups: list[list[Sample]] = [[]]
    for sample in sorted(samples, key=len):
        if (len(groups[-1]) + 1) * len(sample) > batch_tokens and groups[-1]:
            groups.append([])
        groups[-1].append(sample)
    if rng is not None:
        rng.shuffle(groups)
    yield from map(pad, groups)


def pad(samples: Sequence[Sample]) -> Batch:
    longest = max(map(len, samples))
    tokens = torch.zeros(len(samples), longest, dtype=torch.int64)
    predicts_answer = torch.zeros(len(samples), longest, dtype=torch.bool)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample)] = torch.tensor(sample.prompt_ids + sample.answer_ids)
        predicts_answer[row, len(sample.prompt_ids) - 1 : len(sample) - 1] = True
    return Batch(tokens, predicts_answer)
