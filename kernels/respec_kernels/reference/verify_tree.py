"""verify_tree in PyTorch: the CPU path, and the judge of the Triton kernel of the same name.

Mathematics
    The target's token for every node is known, by argmax or by coupled sampling; the walk is the
    same. It starts at the root and, at node ``p``, moves to

        child(p) = the first c in p's list of children with candidate(c) = target(p)

    until there is none or the slots are used up. Every visited node's target token is a committed
    token; the one of the last visited node is the bonus.
Memory
    Each input is read once; temporaries are ``[batch, n]`` words, whatever the depth.
How
    ``child`` is found for all nodes at once. Nobody links to the root, so node 0 stands for
    "none". A node's list is ``h, sibling(h), ...``; both "head of my list" and "first match from
    here on" follow links until they stop, so squaring the link map finds them in log2(topk) steps.
Origin
    Written from the definition above. Argument order and outputs are those of SGLang 0.5.23's
    ``verify_tree_greedy_func``.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from respec_kernels.checks import check_verify_tree


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
    _, none = _constants(n, candidates.device)
    child = accepted_children(
        candidates, retrieve_next_token, retrieve_next_sibling, target_predict, most_children
    )
    path = _walk(child, min(slots, n))
    rows = retrieve_index.gather(1, path)
    # Past its end a path repeats the root, which is always visited: the same value, written twice.
    tokens = target_predict.take(rows).to(torch.int32)
    predicts.scatter_(0, rows.view(-1), tokens.view(-1))
    visited = path != 0
    torch.sum(visited, dim=1, dtype=torch.int32, out=accept_token_num)
    visited[:, :1].fill_(True)  # the root, which does not count
    if slots > n:
        accept_index[:, n:].fill_(-1)
    accept_index[:, :n].copy_(torch.where(visited, rows, none))
    return predicts, accept_index, accept_token_num


@lru_cache(maxsize=256)
def _constants(n: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return node numbers and a -1. Never written to."""
    return torch.arange(n, device=device), torch.full((), -1, device=device)


def accepted_children(
    candidates: torch.Tensor,
    next_token: torch.Tensor,
    next_sibling: torch.Tensor,
    target: torch.Tensor,
    most_children: int | None = None,
) -> torch.Tensor:
    """Return ``[batch, n]``: the child the walk moves to from each node, 0 for none."""
    nodes, _ = _constants(candidates.shape[1], candidates.device)
    most_children = candidates.shape[1] if most_children is None else most_children
    first_child = next_token.clamp(min=0)
    doublings = (most_children - 1).bit_length()
    # What a list's head must equal; cell 0 collects the nodes without children and is never read.
    wanted = torch.zeros_like(target).scatter_(1, first_child, target)
    if doublings == 0:
        return torch.where(candidates == wanted, nodes, nodes[0]).gather(1, first_child)
    sibling = next_sibling.clamp(min=0)
    rows_of_nodes = nodes.expand_as(candidates)
    head = rows_of_nodes.clone().scatter_(1, sibling, rows_of_nodes)
    for _ in range(doublings):
        head = head.gather(1, head)
    match = torch.where(candidates == wanted.gather(1, head), nodes, sibling)
    for _ in range(doublings):
        match = match.gather(1, match)
    return match.gather(1, first_child)


def _walk(child: torch.Tensor, length: int) -> torch.Tensor:
    """Return ``[batch, length]``: the root, then the accepted nodes, then zeros."""
    path = child.new_zeros(child.shape[0], length)
    if length == 1:
        return path
    from_root = child[:, :1]
    here = from_root.clone()
    from_root.zero_()  # from here on node 0 means "none", and none leads to none
    steps = [here]
    for _ in range(length - 2):
        here = child.gather(1, here)
        steps.append(here)
    torch.cat(steps, dim=1, out=path[:, 1:])
    return path
