"""verify_sampled_tree in PyTorch: the CPU path, and the judge of the Triton kernel of that name.

Mathematics
    x(p), the target's token after node p, is ``sample_rows`` of p's row: a function of the seed,
    the position, the logits and the parameters alone. The walk is that of ``verify_tree``: from
    the root to the first child that carries x(p), until there is none; every visited node's x is
    committed. No coins, no residual distribution, no draft probabilities, so what is committed
    does not depend on what was drafted.
Schedules
    ``nodes`` samples all B * n rows and then walks. ``levels`` samples, level by level, only the
    row each request stands on: B * (accepted tokens) rows in all. The results are equal.
Memory
    As in ``sample_rows``; besides that ``[B, n]`` words.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from respec_kernels.reference.sample_rows import sample_rows
from respec_kernels.reference.verify_tree import accepted_children, verify_tree
from respec_kernels.sampling_checks import check_verify_sampled_tree
from respec_kernels.schedule import CPU, DEFAULT_ACCEPTED_LENGTH, Schedule, choose_schedule
from respec_kernels.verified import VerifiedTrees


class _Links(NamedTuple):
    candidates: torch.Tensor  # all [B, n] i64
    index: torch.Tensor
    next_token: torch.Tensor
    next_sibling: torch.Tensor


def verify_sampled_tree(
    logits: torch.Tensor,  # [B * n, V] f32|bf16, the target's, row r is node r mod n's
    positions: torch.Tensor,  # [B * n] i64, hashed: the nodes' own positions
    candidates: torch.Tensor,  # [B, n] i64 >= 0, the nodes' tokens
    retrieve_index: torch.Tensor,  # [B, n] i64, node -> its row: 0, 1, .. B * n - 1
    retrieve_next_token: torch.Tensor,  # [B, n] i64, first child or -1
    retrieve_next_sibling: torch.Tensor,  # [B, n] i64, next child of the same parent or -1
    temperatures: torch.Tensor,  # [B] f32 > 0
    top_ks: torch.Tensor,  # [B] i32 >= 1; 1 = greedy, >= V = no top-k
    top_ps: torch.Tensor,  # [B] f32 in (0, 1]
    min_ps: torch.Tensor,  # [B] f32 in [0, 1]
    seeds: torch.Tensor,  # [B] i64
    *,
    filtered: bool,
    greedy: bool = False,
    max_depth: int,
    schedule: Schedule = "auto",
    root_only: torch.Tensor | None = None,
    accepted_length: float = DEFAULT_ACCEPTED_LENGTH,
) -> VerifiedTrees:
    """Sample the target's tokens by coupled sampling and walk every tree along them.

    Args:
        filtered: whether any request has a top-k (other than greedy and all), top-p or min-p.
        greedy: a promise that all requests are greedy (top_k = 1).
        max_depth: slots of ``accept_index``: the most nodes a walk visits, the root included.
        schedule: ``nodes`` or ``levels`` (see the module); ``auto`` chooses by bytes, see
            ``respec_kernels.schedule``. The result is the same.
        root_only: ``[B]`` bool, requests that accept nothing beyond the root in this step.
        accepted_length: expected tokens per request and step, for ``auto`` alone.

    Returns:
        See ``VerifiedTrees``. The walk of a request with ``row_failed`` ends at the unusable row;
        what came before it is committed.

    Raises:
        ValueError: a shape, dtype, device or stride is not as above, more than 64 nodes, or an
            unknown schedule.
    """
    batch, n = check_verify_sampled_tree(
        logits, positions, candidates, retrieve_index, retrieve_next_token, retrieve_next_sibling,
        temperatures, top_ks, top_ps, min_ps, seeds, max_depth, schedule, root_only,
    )  # fmt: skip
    if schedule == "auto":
        row_bytes = logits.shape[1] * logits.element_size()
        schedule = choose_schedule(batch, n, row_bytes, max_depth, CPU, accepted_length)
    if root_only is not None:
        retrieve_next_token = retrieve_next_token.masked_fill(root_only[:, None], -1)
    links = _Links(candidates, retrieve_index, retrieve_next_token, retrieve_next_sibling)
    sampling = (positions, None, temperatures, top_ks, top_ps, min_ps, seeds)
    walk = _all_nodes if schedule == "nodes" else _level_by_level
    return walk(logits, sampling, links, max_depth, filtered, greedy)


def _all_nodes(
    logits: torch.Tensor,
    sampling: tuple[torch.Tensor | None, ...],
    links: _Links,
    max_depth: int,
    filtered: bool,
    greedy: bool,
) -> VerifiedTrees:
    batch, n = links.candidates.shape
    tokens, chances = sample_rows(logits, *sampling, filtered=filtered, greedy=greedy)
    predicts = torch.zeros(batch * n, dtype=torch.int32, device=logits.device)
    accept_index = predicts.new_empty(batch, max_depth)
    accept_num = predicts.new_empty(batch)
    verify_tree(
        predicts,
        accept_index,
        accept_num,
        links.candidates,
        links.index,
        links.next_token,
        links.next_sibling,
        target_predict=tokens.view(batch, n),
    )
    beyond = accept_index < 0
    rows = torch.where(beyond, accept_index[:, :1], accept_index).to(torch.int64)
    failed = (tokens.take(rows) < 0).any(1)
    logprobs = chances.take(rows).masked_fill_(beyond, 0).nan_to_num_(nan=0.0)
    return VerifiedTrees(predicts.clamp_(min=0), accept_index, accept_num, logprobs, failed)


def _level_by_level(
    logits: torch.Tensor,
    sampling: tuple[torch.Tensor | None, ...],
    links: _Links,
    max_depth: int,
    filtered: bool,
    greedy: bool,
) -> VerifiedTrees:
    candidates, index, next_token, next_sibling = links
    batch, n = candidates.shape
    # One slot more than there are rows, for requests whose walk has ended.
    predicts = torch.zeros(batch * n + 1, dtype=torch.int32, device=logits.device)
    accept_index = predicts.new_empty(batch, max_depth)
    logprobs = logits.new_zeros(batch, max_depth, dtype=torch.float32)
    failed = torch.zeros(batch, dtype=torch.bool, device=logits.device)
    node = index.new_zeros(batch, 1)
    live = index[:, 0].contiguous()
    for depth in range(max_depth):
        tokens, chances = sample_rows(
            logits, *sampling, filtered=filtered, greedy=greedy, live=live
        )
        accept_index[:, depth] = live
        ended = live < 0
        usable = tokens >= 0
        failed |= ~(usable | ended)
        logprobs[:, depth] = chances.masked_fill(~usable, 0)
        slots = live.masked_fill(ended, batch * n)
        predicts.scatter_(0, slots, tokens.clamp(min=0).to(torch.int32))
        # An unusable row's token, -1, is no candidate; nor is that of a walk which has ended.
        target = tokens[:, None].expand(batch, n)
        node = accepted_children(candidates, next_token, next_sibling, target).gather(1, node)
        live = index.gather(1, node).masked_fill_(node == 0, -1)[:, 0]
    accept_num = (accept_index >= 0).sum(1, dtype=torch.int32) - 1
    return VerifiedTrees(predicts[:-1], accept_index, accept_num, logprobs, failed)
