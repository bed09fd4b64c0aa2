"""verify_tree in Triton: one program per request, one launch, no scratch memory.

Mathematics
    As in ``reference/verify_tree.py``. A program holds its tree as vectors of nodes and finds the
    accepted child of every node at once; the walk is then one look-up in registers per level
    instead of a chain of dependent loads per candidate. Nobody links to the root, so node 0
    stands for "none". ``elder`` is the sibling map turned around, found by comparing (``n x n`` in
    registers); squaring it yields every list's head, whose parent is the whole list's parent.
Memory
    Reads each input once (``retrieve_index`` and ``target_predict`` again at visited nodes).
    Writes ``accept_index`` and ``accept_token_num`` whole, ``predicts`` at visited nodes only.
    Nothing is allocated and nothing waits for the host, so the launch can be captured.
Origin
    Written from the definition; outputs are those of SGLang 0.5.23's ``verify_tree_greedy_func``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from respec_kernels.checks import check_verify_tree


@triton.jit
def _verify_tree_kernel(  # type: ignore[no-untyped-def]  # Triton gives annotations a meaning
    predicts_ptr,  # [batch * N] int32
    accept_index_ptr,  # [batch, SLOTS] int32
    accept_num_ptr,  # [batch] int32
    candidates_ptr,  # [batch, N] int64
    index_ptr,  # [batch, N] int64
    next_token_ptr,  # [batch, N] int64
    next_sibling_ptr,  # [batch, N] int64
    target_ptr,  # [batch, N] int64
    N: tl.constexpr,
    NODES: tl.constexpr,  # N rounded up to a power of two
    SLOTS: tl.constexpr,
    PATH: tl.constexpr,  # SLOTS rounded up to a power of two
    LEVELS: tl.constexpr,  # no path is longer
    DOUBLINGS: tl.constexpr,  # ceil(log2(children of a node))
):
    request = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, NODES)
    inside = node < N
    at = request * N + node
    candidate = tl.load(candidates_ptr + at, mask=inside, other=0)
    target = tl.load(target_ptr + at, mask=inside, other=0)
    child = tl.load(next_token_ptr + at, mask=inside, other=-1).to(tl.int32)
    sibling = tl.load(next_sibling_ptr + at, mask=inside, other=-1).to(tl.int32)
    child = tl.maximum(child, 0)
    sibling = tl.maximum(sibling, 0)

    # rows: a node; columns: who might link to it
    parent = tl.max(tl.where(child[None, :] == node[:, None], node[None, :], 0), axis=1)
    head = node
    if DOUBLINGS > 0:
        links = (sibling[None, :] == node[:, None]) & (node[:, None] > 0)
        elder = tl.max(tl.where(links, node[None, :], 0), axis=1)
        head = tl.where(elder > 0, elder, node)
        for _ in tl.static_range(DOUBLINGS):
            head = tl.gather(head, head, 0)
        parent = tl.gather(parent, head, 0)
    fits = (candidate == tl.gather(target, parent, 0)) & inside & (node > 0)
    match = tl.where(fits, node, sibling)
    for _ in tl.static_range(DOUBLINGS):
        match = tl.gather(match, match, 0)
    # A list that ends without a match ends at the root; so does one never begun.
    if DOUBLINGS == 0:
        match = tl.where(fits, node, 0)
    accepted = tl.gather(match, child, 0)

    slot = tl.arange(0, PATH)
    path = tl.zeros([PATH], tl.int32)
    here = tl.sum(tl.where(node == 0, accepted, 0))
    onward = tl.where(node == 0, 0, accepted)  # none leads to none
    for level in range(1, LEVELS):
        path = tl.where(slot == level, here, path)
        here = tl.sum(tl.where(node == here, onward, 0))
    visited = (path > 0) | (slot == 0)

    rows = tl.load(index_ptr + request * N + path, mask=visited, other=-1)
    tokens = tl.load(target_ptr + rows, mask=visited, other=0)
    tl.store(predicts_ptr + rows, tokens.to(tl.int32), mask=visited)
    tl.store(accept_index_ptr + request * SLOTS + slot, rows.to(tl.int32), mask=slot < SLOTS)
    tl.store(accept_num_ptr + request, tl.sum((path > 0).to(tl.int32)))


def verify_tree(
    predicts: torch.Tensor,  # [batch * n] int32, written at visited nodes only
    accept_index: torch.Tensor,  # [batch, slots] int32, written
    accept_token_num: torch.Tensor,  # [batch] int32, written
    candidates: torch.Tensor,  # [batch, n] int64, the nodes' tokens
    retrieve_index: torch.Tensor,  # [batch, n] int64, node -> its row in predicts
    retrieve_next_token: torch.Tensor,  # [batch, n] int64, first child or -1
    retrieve_next_sibling: torch.Tensor,  # [batch, n] int64, next child of the same parent or -1
    target_predict: torch.Tensor,  # [batch, n] int64, the target's token after each node
    topk: int = -1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Walk every tree along the target's own tokens.

    Args:
        topk: an upper bound on the children of one node, -1 if there is none. Saves time only.

    Returns:
        ``predicts``, ``accept_index`` and ``accept_token_num`` as given. ``accept_index`` holds the
        rows of the visited nodes in order, the root's first, then -1; ``accept_token_num`` counts
        them without the root; ``predicts`` holds the committed tokens at exactly those rows.

    Raises:
        ValueError: a shape, dtype, device or stride is not as above, or more than 64 nodes.
    """
    batch, n, slots = check_verify_tree(
        predicts,
        accept_index,
        accept_token_num,
        candidates,
        retrieve_index,
        retrieve_next_token,
        retrieve_next_sibling,
        target_predict,
    )
    if batch == 0:
        return predicts, accept_index, accept_token_num
    most_children = topk if 0 < topk < n else n
    _verify_tree_kernel[(batch,)](
        predicts,
        accept_index,
        accept_token_num,
        candidates,
        retrieve_index,
        retrieve_next_token,
        retrieve_next_sibling,
        target_predict,
        N=n,
        NODES=max(2, triton.next_power_of_2(n)),
        SLOTS=slots,
        PATH=max(2, triton.next_power_of_2(slots)),
        LEVELS=min(slots, n),
        DOUBLINGS=(most_children - 1).bit_length(),
        num_warps=1 if n <= 16 else 4,
    )
    return predicts, accept_index, accept_token_num
