"""Accepted length of a chain, exactly, without a server and without drafting.

A chain's draft tokens matter only while they equal the target's, and along that prefix the
drafter has read the target's own tokens. So one teacher-forced unroll tells, for every row, how
far a chain that started there would have been accepted, and a walk over the rollout counts the
verify rounds. Exact at temperature 0 (up to rounding on ties).
"""

import torch
from torch import Tensor

from sglang_respec.learner.eagle3 import Eagle3Drafter, shift_left


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
