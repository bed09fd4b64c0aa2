"""build_tree in PyTorch: the CPU path, and the judge of the Triton kernel of the same name.

Mathematics
    A drafter that ran ``S`` steps with ``k`` candidates each left a list of entries: ``k`` of the
    first step, then ``k * k`` of every later one. Entry ``e`` belongs to parent slot ``e // k``;
    slot 0 is the root, slot ``s > 0`` holds the entry ``parent_list[s]``. Of all entries,
    ``n - 1`` were chosen; ``top_scores_index`` lists them in ascending order, and with the root
    in front they are nodes ``0 .. n-1``. With ``parent(i)`` a node's parent,

        path(i)     = {i} + path(parent(i)),  path(0) = {0}
        position(i) = length + |path(i)| - 1
        mask(i, j)  = j in path(i)

    and a node's children are a linked list in ascending order: ``next_token`` is the first child,
    ``next_sibling`` the next child of the same parent, -1 where there is none.
    A chosen entry whose parent was not chosen is an orphan (equal scores can do that): it attends
    to itself and the root, has no links, and so is never visited.
Memory
    Each input is read once. No temporary is larger than ``[batch, n, depth + 1]`` words, plus one
    ``[batch, n, n]`` byte mask where the layout is not ``QLEN_ONLY``.
Origin
    Written from the definition above. Argument order and layouts are those of SGLang 0.5.23's
    ``build_tree_kernel_efficient_func``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from respec_kernels.checks import check_build_tree
from respec_kernels.modes import TreeMaskMode, packed_bytes

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


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
    buffer holds beyond this batch.

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
    torch.arange(batch * n, out=retrieve_index.view(-1))
    known = _constants(n, seq_lens.device)
    cells = _tree_cells(tree_mask, tree_mask_mode, batch, n)
    # A chain that verifies all it drafted has one shape only: nothing to look up.
    if n == 1 or (topk == 1 and n == spec_steps + 1):
        retrieve_next_token.copy_(known.successors)
        retrieve_next_sibling.fill_(-1)
        depth = known.nodes
        cells.copy_(known.lower)
    else:
        slots = top_scores_index // topk
        parent = _parents(parent_list, top_scores_index, slots, topk, spec_steps, known)
        _write_links(retrieve_next_token, retrieve_next_sibling, slots, parent, known)
        path = _paths(parent, known, min(spec_steps, n - 1))
        depth = path.sign().sum(0)
        cells.zero_().scatter_(2, path.permute(1, 2, 0), True)
    torch.add(seq_lens.unsqueeze(1), depth, out=positions.view(batch, n))
    if tree_mask_mode == TreeMaskMode.FULL_MASK:
        _write_full_mask(tree_mask, cells, seq_lens, known)
    elif tree_mask_mode == TreeMaskMode.QLEN_ONLY_BITPACKING:
        _write_packed_mask(tree_mask, cells, known)


class _Constants(NamedTuple):
    """What depends on the node count alone. Never written to."""

    nodes: torch.Tensor  # [n] 0, 1, ..
    drafted: torch.Tensor  # [n - 1] 1, 2, ..: nodes without the root
    younger: torch.Tensor  # [n - 2] 2, 3, ..: nodes that may have an elder sibling
    last: torch.Tensor  # [] n - 1
    none: torch.Tensor  # [] -1
    successors: torch.Tensor  # [n] 1, 2, .., -1: the links of a chain
    lower: torch.Tensor  # [n, n] bool, the mask of a chain


@lru_cache(maxsize=256)
def _constants(n: int, device: torch.device) -> _Constants:
    nodes = torch.arange(n, device=device)
    none = torch.full((), -1, device=device)
    successors = nodes + 1
    successors[-1] = -1
    lower = nodes <= nodes.unsqueeze(1)
    return _Constants(nodes, nodes[1:], nodes[2:], nodes[-1], none, successors, lower)


def _parents(
    parent_list: torch.Tensor,
    chosen: torch.Tensor,
    slots: torch.Tensor,
    topk: int,
    spec_steps: int,
    known: _Constants,
) -> torch.Tensor:
    """Return the parent's node of nodes ``1 .. n-1``, -1 for an orphan."""
    if spec_steps == 1:
        return torch.zeros_like(chosen)
    batch, entries = chosen.shape[0], topk + (spec_steps - 1) * topk * topk
    node_of_entry = chosen.new_full((batch, entries), -1)
    node_of_entry.scatter_(1, chosen, known.drafted.expand_as(chosen))
    from_root = slots == 0
    parent_entry = parent_list.gather(1, slots).masked_fill_(from_root, 0)
    return node_of_entry.gather(1, parent_entry).masked_fill_(from_root, 0)


def _write_links(
    next_token: torch.Tensor,
    next_sibling: torch.Tensor,
    slots: torch.Tensor,
    parent: torch.Tensor,
    known: _Constants,
) -> None:
    # Rows are ascending, so siblings (equal slots) are neighbours.
    linked = parent >= 0
    same = slots[:, 1:] == slots[:, :-1]
    after_first = linked[:, 1:]
    next_sibling.fill_(-1)
    torch.where(same & after_first, known.younger, known.none, out=next_sibling[:, 1:-1])
    first = linked
    after_first.logical_and_(same.logical_not_())
    # The last node has no children: whoever is no first child writes the -1 that belongs there.
    next_token.fill_(-1)
    owner = torch.where(first, parent, known.last)
    next_token.scatter_(1, owner, torch.where(first, known.drafted, known.none))


def _paths(parent: torch.Tensor, known: _Constants, depth: int) -> torch.Tensor:
    """Return ``[depth + 1, batch, n]``: each node, its parent, and so on, ending at the root."""
    batch, n = parent.shape[0], known.nodes.shape[0]
    up = parent.new_zeros(batch, n)
    torch.clamp(parent, min=0, out=up[:, 1:])
    path = [known.nodes.expand(batch, n), up]
    for _ in range(depth - 1):
        path.append(up.gather(1, path[-1]))
    return torch.stack(path)


def _tree_cells(tree_mask: torch.Tensor, mode: int, batch: int, n: int) -> torch.Tensor:
    """Return ``[batch, n, n]`` bool cells to fill: the buffer itself where its layout allows."""
    if mode == TreeMaskMode.QLEN_ONLY:
        return tree_mask[: batch * n * n].view(torch.bool).view(batch, n, n)
    return torch.empty(batch, n, n, dtype=torch.bool, device=tree_mask.device)


def _write_full_mask(
    tree_mask: torch.Tensor, mask: torch.Tensor, seq_lens: torch.Tensor, known: _Constants
) -> None:
    n = known.nodes.shape[0]
    row_cells = (seq_lens + n).unsqueeze(1)
    ends = n * row_cells.cumsum(0)
    if tree_mask.device.type == "cpu" and int(ends[-1]) > tree_mask.numel():
        raise ValueError(
            f"tree_mask holds {tree_mask.numel()} cells, these lengths need {int(ends[-1])}: "
            "allocate n * (sum(seq_lens) + batch * n)."
        )
    rows = ends - n * row_cells + seq_lens.unsqueeze(1) + known.nodes * row_cells
    cells = rows.unsqueeze(2) + known.nodes
    tree_mask.view(torch.bool).scatter_(0, cells.view(-1), mask.view(-1))


def _write_packed_mask(tree_mask: torch.Tensor, mask: torch.Tensor, known: _Constants) -> None:
    batch, n, _ = mask.shape
    width = packed_bytes(n)
    words = tree_mask.view(torch.uint8)[: batch * n * width].view(_WORDS[width]).view(batch, n)
    words.copy_((mask * (1 << known.nodes)).sum(dim=2))
