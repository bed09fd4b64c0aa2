"""Accepted length of a chain, exactly, without a server and without drafting.

At a temperature the same holds under coupled sampling: the drafter ranks its tokens with the
request's own noise, which seed and position give again (``draft_topk``), so what a served chain
would have drafted is known, and the rollout says what the target drew.

A chain's draft tokens matter only while they equal the target's, and along that prefix the
drafter has read the target's own tokens. So one teacher-forced unroll tells, for every row, how
far a chain that started there would have been accepted, and a walk over the rollout counts the
verify rounds. Exact up to rounding on ties.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from respec_kernels import draft_topk
from sglang_respec.learner.batches import Window, collate, context_of, windows
from sglang_respec.learner.eagle3 import Eagle3Drafter, shift_left
from sglang_respec.learner.samples import RolloutSample


@dataclass(frozen=True)
class Acceptance:
    """What chains would have committed of some rollouts."""

    tokens: int  # generated after each rollout's first token
    rounds: int  # verify passes that took

    @property
    def length(self) -> float:
        """Tokens per verify round, bonus included; 1 where there was nothing to verify."""
        return self.tokens / self.rounds if self.rounds else 1.0


def chain_hits(
    drafter: Eagle3Drafter,
    aux: Tensor,  # [B, T, A*H]
    tokens: Tensor,  # [B, T] int64, generated at temperature 0
    steps: int,
) -> Tensor:  # [B, T] int64: draft tokens accepted by a chain whose last known token is x[i+1]
    alive = torch.ones_like(tokens, dtype=torch.bool)
    hits = torch.zeros_like(tokens)
    for step, logits in enumerate(drafter.unroll(aux, tokens, steps)):
        drafted = drafter.draft_ids[logits.argmax(-1)]
        alive &= drafted == shift_left(tokens, 2 + step)
        hits += alive
    return hits


def walk(
    hits: Tensor,  # [T] int64 of one rollout
    prompt_tokens: int,
    total_tokens: int,
) -> list[int]:  # tokens committed by each verify round, bonus included
    """The rounds of one rollout. Prefill commits the first token; the last round is cut short
    by the end of the rollout, as a server cuts it."""
    committed, last = [], prompt_tokens  # index of the newest committed token
    accepted = hits.tolist()
    while last < total_tokens - 1:
        gain = min(accepted[last - 1] + 1, total_tokens - 1 - last)
        committed.append(gain)
        last += gain
    return committed


@torch.no_grad()
def measure(
    drafter: Eagle3Drafter,
    samples: Sequence[RolloutSample],
    steps: int,
    *,
    window: int,  # tokens; half its context must hold a chain, see `context_of`
    batch_tokens: int,
) -> Acceptance:
    """Coupled acceptance of chains of ``steps`` drafts over whole rollouts."""
    if context_of(window) // 2 <= steps:
        raise ValueError(f"windows of {window} tokens are too short for chains of {steps}")
    dtype = drafter.fc.weight.dtype
    hits = {sample.request_id: torch.zeros_like(sample.tokens) for sample in samples}
    for parts in _groups([w for s in samples for w in windows(s, window)], batch_tokens):
        batch = collate(parts, drafter, dtype)
        found = coupled_hits(drafter, parts, batch.aux, batch.tokens, batch.positions, steps)
        for part, row in zip(parts, found.cpu(), strict=True):
            own = _own_rows(part, context_of(window))
            mine = slice(own.start - part.begin, own.stop - part.begin)
            hits[part.sample.request_id][own.start : own.stop] = row[mine].int()
    rounds = [
        walk(hits[sample.request_id], sample.prompt_tokens, len(sample.tokens))
        for sample in samples
    ]
    return Acceptance(sum(map(sum, rounds)), sum(map(len, rounds)))


def coupled_hits(
    drafter: Eagle3Drafter,
    parts: Sequence[Window],  # B
    aux: Tensor,  # [B, T, A*H]
    tokens: Tensor,  # [B, T] int64, drawn by coupled sampling
    positions: Tensor,  # [B, T] int64, of the tokens in their rollouts
    steps: int,
) -> Tensor:  # [B, T] int64: draft tokens accepted by a chain whose last known token is x[i+1]
    device = tokens.device
    seeds = torch.tensor([p.sample.seed for p in parts], dtype=torch.int64, device=device)
    heat = torch.tensor([p.sample.temperature for p in parts], device=device)
    temperatures = torch.where(heat > 0, heat, 1.0).float()
    top_ks = torch.where(heat > 0, len(drafter.t2d), 1).int()  # 1 is greedy: no noise
    alive = torch.ones_like(tokens, dtype=torch.bool)
    hits = torch.zeros_like(tokens)
    draft_ids = drafter.draft_ids
    for step, logits in enumerate(drafter.unroll(aux, tokens, steps, positions)):
        # Row i has read token i + 1 + step and guesses the next: that one's noise has the hash
        # of the position before it.
        hashed = (positions + 1 + step).flatten()
        _, best = draft_topk(
            logits.flatten(0, 1).float(), hashed, None, temperatures, top_ks, seeds, draft_ids, 1
        )
        drafted = draft_ids[best[:, 0]].view_as(tokens)
        alive &= drafted == shift_left(tokens, 2 + step)
        hits += alive
    return hits


def _own_rows(part: Window, context: int) -> range:
    """The rows of a rollout for which this window is the best judge: neighbours share a context,
    and meet in its middle, where the one has seen enough and the other sees far enough ahead."""
    total = len(part.sample.tokens)
    begin = part.begin if part.is_first else part.begin + context // 2
    return range(begin, part.end if part.end == total else part.end - context // 2)


def _groups(parts: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Neighbours in length together, at most ``batch_tokens`` with padding (one at the least)."""
    group: list[Window] = []
    for part in sorted(parts, key=len):
        if group and (len(group) + 1) * len(part) > batch_tokens:
            yield group
            group = []
        group.append(part)
    if group:
        yield group
