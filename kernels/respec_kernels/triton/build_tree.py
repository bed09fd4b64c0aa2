"""build_tree in Triton: one program per request, one launch, no scratch memory.

Mathematics
    As in ``reference/build_tree.py``. A program holds its tree's nodes as one vector. Parents and
    links come from comparing that vector with itself (``n x n`` in registers); ancestors are one
    bit each of a 64-bit word, and following every node's parent map and squaring it finds all of
    them in ``ceil(log2(depth))`` steps:

        bits(i) |= bits(up(i)),  up(i) = up(up(i)),  position(i) = length + popcount(bits(i)) - 1

Memory
    Reads every chosen entry once, one parent slot per node, and for ``FULL_MASK`` the lengths of
    the requests before it. Writes every output cell once. Nothing is allocated and nothing waits
    for the host, so the launch can be captured in a CUDA graph; mask cells beyond the end of the
    buffer are never written.
Origin
    Written from the definition; layouts are those of SGLang 0.5.23's
    ``build_tree_kernel_efficient_func``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from respec_kernels.checks import check_build_tree
from respec_kernels.modes import TreeMaskMode, packed_bytes


# A buffer's size may change from call to call: one binary serves them all.
@triton.jit(do_not_specialize=["mask_bytes"])
def _build_tree_kernel(  # type: ignore[no-untyped-def]  # Triton gives annotations a meaning
    parent_list_ptr,  # [batch, width] int64
    chosen_ptr,  # [batch, N - 1] int64
    seq_lens_ptr,  # [batch] int64
    mask_ptr,  # bytes
    positions_ptr,  # [batch, N] int64
    index_ptr,  # [batch, N] int64
    next_token_ptr,  # [batch, N] int64
    next_sibling_ptr,  # [batch, N] int64
    width,
    mask_bytes,
    TOPK: tl.constexpr,
    N: tl.constexpr,
    NODES: tl.constexpr,  # N rounded up to a power of two
    DOUBLINGS: tl.constexpr,
    MODE: tl.constexpr,  # TreeMaskMode
    WORD: tl.constexpr,  # bytes of a packed word
    LENGTHS: tl.constexpr,  # lengths summed at a time
):
    request = tl.program_id(0).to(tl.int64)
    node = tl.arange(0, NODES)
    inside = node < N
    drafted = inside & (node > 0)
    seq_len = tl.load(seq_lens_ptr + request)

    # No entry is negative, so -1 (the root) and -2 (padding) match no parent.
    entry = tl.load(chosen_ptr + request * (N - 1) + node - 1, mask=drafted, other=-2)
    entry = tl.where(node == 0, -1, entry)
    slot = tl.where(drafted, entry // TOPK, 0)
    looks_up = drafted & (slot > 0) & (slot < width)
    parent_entry = tl.load(parent_list_ptr + request * width + slot, mask=looks_up, other=-3)
    found = (parent_entry[:, None] == entry[None, :]) & looks_up[:, None] & drafted[None, :]
    parent = tl.min(tl.where(found, node[None, :], NODES), axis=1)
    parent = tl.where(drafted & (slot == 0), 0, parent)
    linked = drafted & (parent < NODES)

    # rows: any node; columns: its candidate children and younger siblings
    is_child = (parent[None, :] == node[:, None]) & linked[None, :]
    first_child = tl.min(tl.where(is_child, node[None, :], NODES), axis=1)
    is_younger = (parent[None, :] == parent[:, None]) & linked[None, :] & linked[:, None]
    is_younger = is_younger & (node[None, :] > node[:, None])
    sibling = tl.min(tl.where(is_younger, node[None, :], NODES), axis=1)
    out = request * N + node
    tl.store(index_ptr + out, out, mask=inside)
    tl.store(
        next_token_ptr + out,
        tl.where(first_child < NODES, first_child, -1).to(tl.int64),
        mask=inside,
    )
    tl.store(
        next_sibling_ptr + out, tl.where(sibling < NODES, sibling, -1).to(tl.int64), mask=inside
    )

    one = tl.full([NODES], 1, tl.int64)
    bits = (one << node.to(tl.int64)) | one
    up = tl.where(linked, parent, 0)
    for _ in tl.static_range(DOUBLINGS):
        bits = bits | tl.gather(bits, up, 0)
        up = tl.gather(up, up, 0)
    attends = (bits[:, None] >> node[None, :].to(tl.int64)) & 1
    depth = tl.sum(attends, axis=1) - 1
    tl.store(positions_ptr + out, seq_len + depth, mask=inside)

    if MODE == 2:
        byte = tl.arange(0, WORD)
        at = out[:, None] * WORD + byte[None, :]
        value = (bits[:, None] >> (8 * byte[None, :]).to(tl.int64)) & 255
        tl.store(mask_ptr + at, value.to(tl.uint8), mask=inside[:, None])
    else:
        row_cells = tl.full([], N, tl.int64)
        start = request * N * N
        if MODE == 0:
            before = tl.full([], 0, tl.int64)
            for first in range(0, request, LENGTHS):
                earlier = first + tl.arange(0, LENGTHS)
                before += tl.sum(tl.load(seq_lens_ptr + earlier, mask=earlier < request, other=0))
            row_cells = row_cells + seq_len
            start = start + before * N + seq_len
        at = start + node[:, None] * row_cells + node[None, :]
        cells = inside[:, None] & inside[None, :] & (at < mask_bytes)
        tl.store(mask_ptr + at, attends.to(tl.uint8), mask=cells)


def build_tree(
    parent_list: torch.Tensor,  # [batch, topk * (spec_steps - 1) + 1] int64; unread for one step
    top_scores_index: torch.Tensor,  # [batch, n - 1] int64, each row ascending
    seq_lens: torch.Tensor,  # [batch] int64, lengths without draft nodes
    tree_mask: torch.Tensor,  # flat, written in place; layout: tree_mask_mode
    positions: torch.Tensor,  # [batch * n] int64, written
    retrieve_index: torch.Tensor,  # [batch, n] int64, written
    retrieve_next_token: torch.Tensor,  # [batch, n] int64, written
    retrieve_next_sibling: torch.Tensor,  # [batch, n] int64, written
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    tree_mask_mode: int = TreeMaskMode.FULL_MASK,
) -> None:
    """Turn the drafter's chosen entries into a tree: mask, positions and links.

    Every cell of the four index outputs is written, whatever they held before, and of the mask
    exactly the cells between nodes: never the prefix columns of ``FULL_MASK``, never what a larger
    buffer holds beyond this batch. A ``FULL_MASK`` buffer too small for the lengths (which the
    host does not know) is filled up to its end.

    Raises:
        ValueError: a shape, dtype, device or stride is not as above; a bit-packed mask of more
            than 32 nodes; more than 64 nodes; a mask buffer too small.
    """
    batch = check_build_tree(
        parent_list,
        top_scores_index,
        seq_lens,
        tree_mask,
        positions,
        retrieve_index,
        retrieve_next_token,
        retrieve_next_sibling,
        topk,
        spec_steps,
        num_verify_tokens,
        tree_mask_mode,
    )
    if batch == 0:
        return
    n = num_verify_tokens
    _build_tree_kernel[(batch,)](
        parent_list,
        top_scores_index,
        seq_lens,
        tree_mask.view(torch.uint8),
        positions,
        retrieve_index,
        retrieve_next_token,
        retrieve_next_sibling,
        parent_list.shape[1],
        tree_mask.nbytes,
        TOPK=topk,
        N=n,
        NODES=max(2, triton.next_power_of_2(n)),
        DOUBLINGS=(min(spec_steps, n) - 1).bit_length(),
        MODE=int(tree_mask_mode),
        WORD=packed_bytes(n),
        LENGTHS=256,
        num_warps=1 if n <= 16 else 4,
    )
