"""The tokens on the way from a draft tree's root to each of its nodes.

Shapes: B requests, n nodes of a tree, D the deepest a node can lie below the root.
"""

import torch


def path_tokens(
    candidates: torch.Tensor,  # [B, n] i64: the token of each node
    next_token: torch.Tensor,  # [B, n] i64: first child of a node, or -1
    next_sibling: torch.Tensor,  # [B, n] i64: next child of the same parent, or -1
    max_depth: int,
    max_siblings: int,
) -> torch.Tensor:
    """[B, n, max_depth] i64: the node's own token, then its ancestors'; -1 past the root.

    The root is not part of any path: its token is committed already. ``max_siblings`` is the
    most children a node can have. A few calls per level, none per request.
    """
    parent = parents(next_token, next_sibling, max_siblings)
    batch, nodes = candidates.shape
    at = torch.arange(nodes, device=candidates.device).expand(batch, nodes)
    path = []
    for _ in range(max_depth):
        drafted = at > 0
        path.append(torch.where(drafted, candidates.gather(1, at), -1))
        at = torch.where(drafted, parent.gather(1, at), 0)
    if not path:
        return candidates.new_empty((batch, nodes, 0))
    return torch.stack(path, dim=2)


def parents(
    next_token: torch.Tensor,  # [B, n] i64
    next_sibling: torch.Tensor,  # [B, n] i64
    max_siblings: int,
) -> torch.Tensor:
    """[B, n] i64: each node's parent; the root's, and that of a node nobody links, is 0."""
    batch, nodes = next_token.shape
    parent = next_token.new_zeros((batch, nodes + 1))  # the last column takes what links nowhere
    here = torch.arange(nodes, device=next_token.device).expand(batch, nodes)
    parent.scatter_(1, torch.where(next_token >= 0, next_token, nodes), here)
    sibling = torch.where(next_sibling >= 0, next_sibling, nodes)
    for _ in range(max_siblings - 1):
        parent.scatter_(1, sibling, parent[:, :nodes].clone())
    return parent[:, :nodes]
