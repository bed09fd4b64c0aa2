"""Rollouts cut into windows and padded into batches of top-K targets.

A long rollout is cut into windows, since training attends over T x T pairs. Each window but the
first begins with a quarter of context whose rows are not scored again, and keeps its absolute
positions, so every generated token is scored once and sees the drafter's recent past.
Legend as in :mod:`.samples` and :mod:`.targets`; B windows, T their padded length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_respec.learner.eagle3 import Eagle3Drafter
from sglang_respec.learner.objective import RowComparison, common_shapes
from sglang_respec.learner.samples import RolloutSample
from sglang_respec.learner.targets import (
    TopTargets,
    draft_slots,
    to_draft_vocab,
    top_agreement,
    top_kl,
    top_overlap,
)


def context_of(size: int) -> int:
    """Tokens that neighbouring windows share: a quarter, and even, so that it has a middle."""
    return size // 8 * 2


@dataclass(frozen=True)
class Window:
    """Tokens ``[begin, end)`` of a rollout; distributions in rows before ``first_row`` belong to
    an earlier window. Row t is the distribution of token t + 1."""

    sample: RolloutSample
    begin: int
    end: int
    first_row: int
    weight: float = 1.0

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def is_first(self) -> bool:
        return self.first_row == self.sample.prompt_tokens - 1

    @property
    def scored_rows(self) -> range:
        """Absolute rows that count. Their token is within the window."""
        return range(max(self.first_row, self.sample.prompt_tokens - 1), self.end - 1)


def windows(sample: RolloutSample, size: int, weight: float = 1.0) -> Iterator[Window]:
    """Cover every generated token of a rollout once with windows of at most ``size`` tokens.

    A prompt longer than a window is shortened at its front. Raises `ValueError` below 8 tokens.
    """
    if size < 8:
        raise ValueError(f"a window of {size} tokens is too short; use 8 or more")
    total, context = len(sample.tokens), context_of(size)
    answer = sample.prompt_tokens - 1  # the first scored row
    begin = sample.first_aux
    if answer - begin >= size - context:
        begin = answer - context
    first_row = answer
    while True:
        end = min(begin + size, total)
        yield Window(sample, begin, end, first_row, weight)
        if end == total:
            return
        first_row = end - 1
        begin = end - context


@dataclass(frozen=True)
class TopBatch:
    """Windows as one batch; padding is on the right with ``scored`` false."""

    tokens: Tensor  # [B, T] int64
    aux: Tensor  # [B, T, A*H]
    scored: Tensor  # [B, T] bool
    weights: Tensor  # [B] float
    positions: Tensor  # [B, T] int64
    temperatures: Tensor  # [B] float, 1 for greedy rollouts
    targets: TopTargets  # of N = B * T rows

    def shapes(self, drafter: Eagle3Drafter) -> dict[str, tuple[int, ...]]:
        rows = tuple(self.tokens.shape)
        return {**common_shapes(rows, drafter), "positions": rows, "temperatures": rows[:1]}

    def compare(self, ahead: int, rows: Tensor, logits: Tensor) -> RowComparison:
        index = rows.flatten().nonzero()[:, 0]
        targets = self.targets[index + ahead]
        scaled = logits / self.temperatures[index // rows.shape[1], None]
        return RowComparison(
            top_kl(targets, scaled), top_overlap(targets, scaled), top_agreement(targets, scaled)
        )


def collate(parts: Sequence[Window], drafter: Eagle3Drafter, dtype: torch.dtype) -> TopBatch:
    """Pad windows into one batch on the drafter's device.

    dtype: of hidden states, weights and probabilities. Raises `ValueError` for another width.
    """
    device = drafter.d2t.device
    length, width = max(map(len, parts)), parts[0].sample.aux.shape[1]
    listed = max(part.sample.top_ids.shape[1] for part in parts)
    shape = (len(parts), length)
    tokens = torch.zeros(shape, dtype=torch.int64)
    aux = torch.zeros(*shape, width, dtype=dtype)
    scored = torch.zeros(shape, dtype=torch.bool)
    top_ids = torch.full((*shape, listed), -1, dtype=torch.int64)  # -1: nothing listed
    top_logprobs = torch.full((*shape, listed), -torch.inf, dtype=dtype)
    tail = torch.zeros(shape, dtype=dtype)
    for row, part in enumerate(parts):
        sample, size = part.sample, len(part)
        tokens[row, :size] = sample.tokens[part.begin : part.end]
        states = sample.aux[part.begin - sample.first_aux : part.end - sample.first_aux]
        aux[row, : len(states)] = states
        rows, k = part.scored_rows, sample.top_ids.shape[1]
        here = slice(rows.start - part.begin, rows.stop - part.begin)
        there = slice(rows.start + 1 - sample.prompt_tokens, rows.stop + 1 - sample.prompt_tokens)
        scored[row, here] = True
        top_ids[row, here, :k] = sample.top_ids[there].long()
        top_logprobs[row, here, :k] = sample.top_logprobs[there].to(dtype)
        tail[row, here] = sample.tail_mass[there].to(dtype)
    slots = draft_slots(drafter.draft_ids, drafter.config.vocab_size)
    targets = to_draft_vocab(
        top_ids.flatten(0, 1).to(device),
        top_logprobs.flatten(0, 1).to(device),
        tail.flatten().to(device),
        slots,
        len(drafter.d2t),
    )
    begins = torch.tensor([part.begin for part in parts])[:, None]
    temperatures = torch.tensor([part.sample.temperature or 1.0 for part in parts], dtype=dtype)
    return TopBatch(
        tokens.to(device),
        aux.to(device),
        scored.to(device) & targets.usable.view(shape),
        torch.tensor([part.weight for part in parts], dtype=dtype, device=device),
        (begins + torch.arange(length)).to(device),
        temperatures.to(device),
        targets,
    )
