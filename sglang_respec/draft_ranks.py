"""At which rank of the drafter's candidates the target's own tokens stood, counted on the device.

A round that runs a tree shows more than how far it got: at every node the target reached, which
of the candidates drafted there was the target's token, or that none was. From these counts follow
the expected accepted lengths of shapes that do not run.

Suffixes: B requests, n nodes of a draft tree (root included), S steps, K its top-k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sglang_respec.core import TEMPERATURE_CLASSES, RankCounts


def count_tree_ranks(
    picks: torch.Tensor,  # [B, n - 1] i64: each node's place among the drafted candidates
    parents: torch.Tensor,  # [B, *] i64: the candidate that each group of K hangs on, -1 the root
    accept_index: torch.Tensor,  # [B, S + 1] int: accepted nodes in [0, B * n), -1 past the end
    accept_lens: torch.Tensor,  # [B] int: how many, the root included
    classes: torch.Tensor,  # [B] i64: temperature class of each request
    topk: int,
) -> torch.Tensor:
    """Counts [classes, S, 2, K, K + 1] i64 of (depth, path, candidates offered, rank or miss).

    Depth d counts what stood below the accepted node at depth d - 1: at column r - 1 if the
    target's token was candidate r, at column K if it was none of those offered. path is 1 while
    only first candidates were accepted. Nodes with no drafted candidate are not counted. SGLang
    keeps candidates in groups of K in order of score, so that a group's drafted ones are its first.
    """
    batch, others = picks.shape
    steps = accept_index.shape[1] - 1
    device = picks.device
    if parents.shape[1] == 0:  # one step: every candidate hangs on the root
        hangs_on = torch.full_like(picks, -1)
    else:
        hangs_on = parents.gather(1, picks // topk)
    first_node = torch.arange(batch, device=device)[:, None] * (others + 1)
    nodes = (accept_index - first_node).clamp_(min=0)  # [B, S + 1]
    reached = torch.arange(steps + 1, device=device) < accept_lens[:, None]
    # The root's pick is -1, as `parents` has it; node i's is picks[i - 1].
    pick_of = torch.cat([torch.full_like(picks[:, :1], -1), picks], dim=1)
    picked = pick_of.gather(1, nodes)  # [B, S + 1]
    offered = (hangs_on[:, None, :] == picked[:, :steps, None]).sum(-1)  # [B, S]

    hit = reached[:, 1:]
    rank = picked[:, 1:] % topk  # [B, S], 0 for the first
    column = torch.where(hit, rank, topk)
    on_firsts = torch.ones_like(hit)
    on_firsts[:, 1:] = (hit & (rank == 0))[:, :-1].cumprod(dim=1).bool()
    counted = reached[:, :steps] & (offered > 0)

    depth = torch.arange(steps, device=device)
    cell = (classes[:, None] * steps + depth) * 2 + on_firsts
    cell = (cell * topk + (offered - 1)) * (topk + 1) + column
    size = len(TEMPERATURE_CLASSES) * steps * 2 * topk * (topk + 1)
    counts = torch.zeros(size + 1, dtype=torch.int64, device=device)
    cell = torch.where(counted, cell, size).flatten()
    counts.scatter_add_(0, cell, torch.ones_like(cell))
    return counts[:size].view(len(TEMPERATURE_CLASSES), steps, 2, topk, topk + 1)


def tree_ranks(counts: torch.Tensor) -> tuple[RankCounts, ...]:
    """The counts on the host as records, by how many candidates were offered."""
    topk = counts.shape[3]
    found: list[RankCounts] = []
    for offered in range(1, topk + 1):
        part = counts[:, :, :, offered - 1]
        columns = torch.cat([part[..., :offered], part[..., topk:]], dim=-1)
        found += RankCounts.from_table(columns.tolist())
    return tuple(found)


def chain_ranks(
    correct_drafts: Sequence[int],  # [B] accepted drafts of each request
    classes: Sequence[int],  # [B] its temperature class
    steps: int,
) -> tuple[RankCounts, ...]:
    """The same for a chain, whose accepted lengths say it all: one candidate at each depth."""
    table = [[[[0, 0], [0, 0]] for _ in range(steps)] for _ in TEMPERATURE_CLASSES]
    for correct, which in zip(correct_drafts, classes, strict=True):
        for depth in range(correct):
            table[which][depth][1][0] += 1
        if correct < steps:
            table[which][correct][1][1] += 1
    return RankCounts.from_table(table)
