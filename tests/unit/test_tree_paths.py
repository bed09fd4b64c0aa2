"""Paths of draft trees against a walk from every node."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_respec.sampling.paths import parents, path_tokens

TREES = st.integers(1, 12).flatmap(
    lambda nodes: st.lists(
        st.tuples(*(st.integers(0, max(0, node - 1)) for node in range(nodes))),
        min_size=1,
        max_size=4,
    )
)


def links(trees: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """first child and next sibling of every node; entry i of a tree is the parent of node i."""
    nodes = len(trees[0])
    child = torch.full((len(trees), nodes), -1)
    sibling = torch.full((len(trees), nodes), -1)
    for row, parent_of in enumerate(trees):
        for node in reversed(range(1, nodes)):
            sibling[row, node] = child[row, parent_of[node]]
            child[row, parent_of[node]] = node
    return child, sibling


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_parents_are_found_through_the_links(trees: list[tuple[int, ...]]) -> None:
    nodes = len(trees[0])
    found = parents(*links(trees), max_siblings=nodes)
    assert found.tolist() == [list(tree) for tree in trees]


@settings(max_examples=200, deadline=None)
@given(TREES, st.integers(0, 12))
def test_paths_name_the_tokens_from_the_node_up_to_the_root(
    trees: list[tuple[int, ...]], depth: int
) -> None:
    nodes = len(trees[0])
    candidates = torch.arange(len(trees) * nodes).view(-1, nodes) + 100
    found = path_tokens(candidates, *links(trees), depth, nodes)
    assert found.shape == (len(trees), nodes, depth)
    for row, parent_of in enumerate(trees):
        for node in range(nodes):
            path, at = [], node
            while at > 0 and len(path) < depth:
                path.append(int(candidates[row, at]))
                at = parent_of[at]
            assert found[row, node].tolist() == path + [-1] * (depth - len(path))


def test_a_chain_needs_no_sibling_pass() -> None:
    child, sibling = links([(0, 0, 1, 2)])
    assert parents(child, sibling, max_siblings=1).tolist() == [[0, 0, 1, 2]]


def test_a_node_that_nobody_links_hangs_below_the_root() -> None:
    child = torch.tensor([[1, -1, -1]])
    assert parents(child, torch.full((1, 3), -1), max_siblings=2).tolist() == [[0, 0, 0]]
