"""verify_sampled_tree in Triton: sample_rows, and a walk that needs no tree in registers.

Mathematics
    As in ``reference/verify_sampled_tree.py``. A walk holds one node. Its token known, it follows
    the node's list of children to the first that carries it; no list is longer than the tree.
Launches
    ``nodes``: sample all rows, then one launch walks every tree to its end. ``levels``: for each
    of max_depth levels, sample the row each request stands on, then one launch takes one step.
    How many is known beforehand, so either can be captured; a request whose walk has ended costs
    its later levels nothing but empty programs.
Memory
    ``nodes`` reads B * n rows, ``levels`` one row per committed token. A step reads a node's links
    and as many candidates as it tries.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from respec_kernels.sampling_checks import check_verify_sampled_tree
from respec_kernels.schedule import DEFAULT_ACCEPTED_LENGTH, GPU, Schedule, choose_schedule
from respec_kernels.triton.sample_rows import sample_rows
from respec_kernels.verified import VerifiedTrees


@triton.jit
def _walk_kernel(  # type: ignore[no-untyped-def]  # Triton gives annotations a meaning
    predicts_ptr,  # [B * N] i32, zeros
    accept_index_ptr,  # [B, SLOTS] i32
    accept_num_ptr,  # [B] i32
    logprobs_ptr,  # [B, SLOTS] f32
    failed_ptr,  # [B] bool, zeros
    node_ptr,  # [B] i32, where the walk stands; -1: it has ended
    live_ptr,  # [B] i64, the row of that node or -1, written
    tokens_ptr,  # [B * N] i64 if ALL, else [B]: those of the live rows
    chances_ptr,  # f32, likewise
    candidates_ptr,  # [B, N] i64
    index_ptr,  # [B, N] i64
    next_token_ptr,  # [B, N] i64
    next_sibling_ptr,  # [B, N] i64
    root_only_ptr,  # [B] bool
    first,
    last,
    ALL: tl.constexpr,
    ROOT_ONLY: tl.constexpr,
    N: tl.constexpr,
    SLOTS: tl.constexpr,
):
    request = tl.program_id(0).to(tl.int64)
    links = request * N
    node = tl.load(node_ptr + request).to(tl.int64)
    stays = tl.full([], 0, tl.int1)
    if ROOT_ONLY:
        stays = tl.load(root_only_ptr + request) != 0
    for depth in range(first, last):
        row = tl.full([], -1, tl.int64)
        logprob = tl.full([], 0.0, tl.float32)
        if node >= 0:
            row = tl.load(index_ptr + links + node)
            slot = request
            if ALL:
                slot = row
            token = tl.load(tokens_ptr + slot)
            child = tl.full([], -1, tl.int64)
            if token >= 0:
                logprob = tl.load(chances_ptr + slot)
                tl.store(predicts_ptr + row, token.to(tl.int32))
                if not stays:
                    child = tl.load(next_token_ptr + links + node)
                other = tl.load(candidates_ptr + links + tl.maximum(child, 0))
                while (child >= 0) & (other != token):
                    child = tl.load(next_sibling_ptr + links + child)
                    other = tl.load(candidates_ptr + links + tl.maximum(child, 0))
            else:
                tl.store(failed_ptr + request, True)
            tl.store(accept_num_ptr + request, depth)
            node = child
        tl.store(accept_index_ptr + request * SLOTS + depth, row.to(tl.int32))
        tl.store(logprobs_ptr + request * SLOTS + depth, logprob)
    tl.store(node_ptr + request, node.to(tl.int32))
    live = tl.load(index_ptr + links + tl.maximum(node, 0))
    tl.store(live_ptr + request, tl.where(node >= 0, live, -1))


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
        schedule = choose_schedule(batch, n, row_bytes, max_depth, GPU, accepted_length)
    words = torch.zeros(batch * n + batch, dtype=torch.int32, device=logits.device)
    found = VerifiedTrees(
        predicts=words[: batch * n],
        accept_index=words.new_empty(batch, max_depth),
        accept_token_num=words.new_empty(batch),
        logprobs=logits.new_empty(batch, max_depth, dtype=torch.float32),
        row_failed=torch.zeros(batch, dtype=torch.bool, device=logits.device),
    )
    if batch == 0:
        return found
    node, live = words[batch * n :], retrieve_index[:, 0].contiguous()
    links = (candidates, retrieve_index, retrieve_next_token, retrieve_next_sibling)
    sampling = (positions, None, temperatures, top_ks, top_ps, min_ps, seeds)
    everywhere = schedule == "nodes"
    steps = [(0, max_depth)] if everywhere else [(d, d + 1) for d in range(max_depth)]
    for first, last in steps:
        tokens, chances = sample_rows(
            logits, *sampling, filtered=filtered, greedy=greedy, live=None if everywhere else live
        )
        _walk_kernel[(batch,)](
            *found, node, live, tokens, chances, *links,
            found.row_failed if root_only is None else root_only, first, last,
            ALL=everywhere, ROOT_ONLY=root_only is not None, N=n, SLOTS=max_depth, num_warps=1,
        )  # fmt: skip
    return found
