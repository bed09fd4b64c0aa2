"""Ranks of the target's tokens in a draft tree, against a walk of the tree by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_respec.core import RankCounts
from sglang_respec.draft_ranks import chain_ranks, count_tree_ranks, tree_ranks

CLASSES = 3


def random_tree(rng, steps, topk, nodes):
    """(picks [n - 1], parents) as SGLang drafts them: the best by a score that falls downwards."""
    scores, hangs_on, parents = [], [], [-1, *range(topk)]
    level = []
    first = sorted((rng.random() for _ in range(topk)), reverse=True)
    for rank in range(topk):
        scores.append(first[rank])
        hangs_on.append(-1)
        level.append(rank)
    for step in range(1, steps):
        new = []
        for candidate in level:
            for share in sorted((rng.random() for _ in range(topk)), reverse=True):
                new.append(len(scores))
                scores.append(scores[candidate] * share)
                hangs_on.append(candidate)
        level = sorted(new, key=lambda each: -scores[each])[:topk]
        if step + 1 < steps:
            parents += level
        # A group of candidates belongs to the followed one at its place.
        regrouped = [each for each in new if each in level]
        assert len(regrouped) == len(level)
    best = sorted(range(len(scores)), key=lambda each: -scores[each])[: nodes - 1]
    return sorted(best), parents, hangs_on


def accept(rng, picks, hangs_on, steps):
    """A random walk down the drafted tree: accepted nodes, the root included."""
    path, at = [0], -1
    while len(path) <= steps:
        children = [i for i, pick in enumerate(picks, start=1) if hangs_on[pick] == at]
        if not children or rng.random() < 0.3:
            break
        path.append(rng.choice(children))
        at = picks[path[-1] - 1]
    return path


def by_hand(picks, hangs_on, path, steps, topk, which):
    """{(class, depth, on firsts, offered): [hits..., misses]} of one request."""
    found, firsts, at = {}, True, -1
    for depth in range(1, steps + 1):
        offered = [pick for pick in picks if hangs_on[pick] == at]
        if depth > len(path) or not offered:
            break
        row = found.setdefault((which, depth, firsts, len(offered)), [0] * (len(offered) + 1))
        if depth == len(path):
            row[-1] += 1
            break
        at = picks[path[depth] - 1]
        rank = at % topk
        row[rank] += 1
        firsts = firsts and rank == 0
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.data(),
)
def test_counts_are_those_of_a_walk(rng, batch, steps, topk, data):
    size = topk + (steps - 1) * topk * topk
    nodes = data.draw(st.integers(2, size + 1))
    trees, expected = [], {}
    for request in range(batch):
        picks, parents, hangs_on = random_tree(rng, steps, topk, nodes)
        path = accept(rng, picks, hangs_on, steps)
        which = rng.randrange(CLASSES)
        trees.append((picks, parents, [request * nodes + node for node in path], which))
        for key, row in by_hand(picks, hangs_on, path, steps, topk, which).items():
            kept = expected.setdefault(key, [0] * len(row))
            expected[key] = [a + b for a, b in zip(kept, row, strict=True)]
    accept_index = torch.full((batch, steps + 1), -1, dtype=torch.int32)
    for request, (_, _, path, _) in enumerate(trees):
        accept_index[request, : len(path)] = torch.tensor(path)
    parents = torch.tensor([tree[1] for tree in trees])
    counts = count_tree_ranks(
        torch.tensor([tree[0] for tree in trees]),
        parents if steps > 1 else parents[:, :0],
        accept_index,
        torch.tensor([len(tree[2]) for tree in trees], dtype=torch.int32),
        torch.tensor([tree[3] for tree in trees]),
        topk,
    )
    found = {
        (each.temperature_class, each.depth, each.first_ranks, len(each.hits)): [
            *each.hits,
            each.misses,
        ]
        for each in tree_ranks(counts)
    }
    assert found == expected


def test_a_chain():
    found = chain_ranks([2, 0, 3], [0, 0, 2], steps=3)
    assert set(found) == {
        RankCounts(0, 1, True, (1,), 1),
        RankCounts(0, 2, True, (1,), 0),
        RankCounts(0, 3, True, (0,), 1),
        RankCounts(2, 1, True, (1,), 0),
        RankCounts(2, 2, True, (1,), 0),
        RankCounts(2, 3, True, (1,), 0),
    }


def test_a_chain_as_a_tree_says_the_same():
    correct = [2, 0, 3]
    accept_index = torch.full((3, 4), -1, dtype=torch.int32)
    for request, drafts in enumerate(correct):
        accept_index[request, : drafts + 1] = torch.arange(drafts + 1) + request * 4
    counts = count_tree_ranks(
        torch.arange(3).expand(3, 3),
        torch.tensor([[-1, 0, 1]] * 3),
        accept_index,
        torch.tensor(correct, dtype=torch.int32) + 1,
        torch.tensor([0, 0, 2]),
        topk=1,
    )
    assert set(tree_ranks(counts)) == set(chain_ranks(correct, [0, 0, 2], steps=3))


def test_requests_must_agree_with_their_classes():
    with pytest.raises(ValueError, match="zip"):
        chain_ranks([1, 2], [0], steps=2)
