"""verify_tree, both implementations, against the oracle and against walks worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_cases import (
    POISON,
    Verifiable,
    agreeing,
    build_arguments,
    check_verify,
    draft,
    random_trees,
    random_verifiable,
    verify_arguments,
)
from tree_oracle import Tree

from respec_kernels import TreeMaskMode

FEW = settings(max_examples=60, deadline=None, derandomize=True)
CHAIN = Tree((None, 0, 1, 2))
#      0
#    / | \      nodes 1 and 2 carry the same token
#   1  2  3
#   |  |
#   4  5
TREE = Tree((None, 0, 0, 0, 1, 2))


def test_walk_worked_out_by_hand(kernel) -> None:
    case = Verifiable(
        trees=[TREE, TREE],
        candidates=[[9, 20, 21, 22, 30, 31], [9, 20, 21, 22, 30, 31]],
        targets=[[21, 0, 31, 0, 0, 77], [55, 0, 31, 0, 0, 77]],
        slots=4,
    )
    arguments = verify_arguments(case)
    kernel("verify_tree")(**arguments)
    assert arguments["accept_index"].tolist() == [[0, 2, 5, -1], [6, -1, -1, -1]]
    assert arguments["accept_token_num"].tolist() == [2, 0]
    P = POISON
    assert arguments["predicts"].tolist() == [21, P, 31, P, P, 77, 55, P, P, P, P, P]


def test_of_two_siblings_with_the_same_token_the_first_wins(kernel) -> None:
    # Node 2's child would match too, but the walk has gone to node 1.
    case = Verifiable([TREE], [[9, 7, 7, 7, 1, 2]], [[7, 2, 2, 2, 0, 0]], slots=4)
    arguments = verify_arguments(case)
    kernel("verify_tree")(**arguments)
    assert arguments["accept_index"].tolist() == [[0, 1, -1, -1]]
    check_verify(kernel("verify_tree"), case)


def test_first_means_first_in_the_list_whatever_the_numbers(kernel) -> None:
    # The root's list is 3, 1, 2: links need not ascend, and 3 and 1 carry the same token.
    arguments = verify_arguments(Verifiable([TREE], [[9, 7, 8, 7, 1, 2]], [[7, 1, 2, 4, 0, 0]], 4))
    arguments["retrieve_next_token"][0, 0] = 3
    arguments["retrieve_next_sibling"][0] = torch.tensor([-1, 2, -1, 1, -1, -1])
    kernel("verify_tree")(**arguments)
    assert arguments["accept_index"].tolist() == [[0, 3, -1, -1]]
    arguments["candidates"][0, 3] = 6
    kernel("verify_tree")(**arguments)
    assert arguments["accept_index"].tolist() == [[0, 1, 4, -1]]


@pytest.mark.parametrize("topk", [-1, 1])
def test_chain(kernel, topk: int) -> None:
    candidates = [[5, 6, 7, 8]] * 4
    targets = [[6, 7, 8, 9], [6, 7, 0, 9], [0, 7, 8, 9], [6, 0, 8, 9]]
    case = Verifiable([CHAIN] * 4, candidates, targets, slots=4, topk=topk)
    check_verify(kernel("verify_tree"), case)
    arguments = verify_arguments(case)
    kernel("verify_tree")(**arguments)
    assert arguments["accept_token_num"].tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.parametrize("nodes", [1, 2, 4, 8, 16, 33, 63, 64])
def test_all_accepted_and_none_accepted(kernel, batch: int, nodes: int) -> None:
    case = agreeing(random_trees(nodes, batch, nodes, most_children=4), slots=nodes)
    check_verify(kernel("verify_tree"), case)
    refused = [[-5] * nodes] * batch
    check_verify(kernel("verify_tree"), replace(case, targets=refused))


def test_slots_end_the_walk(kernel) -> None:
    for slots in (1, 2, 3, 5):  # fewer than the path, and more than the tree has nodes
        check_verify(kernel("verify_tree"), agreeing([CHAIN, CHAIN], slots))


@FEW
@given(data=st.data())
def test_random_trees(kernel, data: st.DataObject) -> None:
    case = random_verifiable(
        seed=data.draw(st.integers(0, 2**31)),
        batch=data.draw(st.integers(1, 4)),
        nodes=data.draw(st.integers(1, 24)),
        most_children=data.draw(st.integers(1, 8)),
        vocabulary=data.draw(st.integers(1, 4)),
        slots=data.draw(st.integers(1, 9)),
    )
    bound = data.draw(st.booleans())
    check_verify(kernel("verify_tree"), case if bound else replace(case, topk=-1))


def test_the_walk_follows_what_build_tree_wrote(kernel) -> None:
    drafted = draft(11, [3, 0, 7], topk=4, steps=4, nodes=16)
    built = build_arguments(drafted, TreeMaskMode.QLEN_ONLY)
    kernel("build_tree")(**built)
    case = replace(agreeing(drafted.trees, slots=5), topk=4)
    arguments = verify_arguments(case)
    for name in ("retrieve_index", "retrieve_next_token", "retrieve_next_sibling"):
        assert torch.equal(arguments[name], built[name])
    check_verify(kernel("verify_tree"), case)


def test_an_empty_batch_is_left_alone(kernel) -> None:
    arguments = {
        name: value[:0] if isinstance(value, torch.Tensor) else value
        for name, value in verify_arguments(agreeing([TREE], 4)).items()
    }
    outputs = kernel("verify_tree")(**arguments)
    assert [len(output) for output in outputs] == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"predicts": torch.zeros(6, dtype=torch.int64)}, r"predicts\.to\(torch\.int32\)"),
        ({"candidates": torch.zeros(1, 6, dtype=torch.int32)}, r"candidates\.to\(torch\.int64\)"),
        ({"candidates": torch.zeros(6, dtype=torch.int64)}, "reshape them"),
        ({"target_predict": torch.zeros(6, dtype=torch.int64)}, "target_predict must have shape"),
        (
            {"retrieve_index": torch.zeros(1, 12, dtype=torch.int64)[:, ::2]},
            r"retrieve_index\.contiguous\(\)",
        ),
        ({"accept_index": torch.zeros(1, 0, dtype=torch.int32)}, "at least 1 slot"),
    ],
)
def test_wrong_arguments_name_the_remedy(kernel, change, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        kernel("verify_tree")(**{**verify_arguments(agreeing([TREE], 4)), **change})


@pytest.mark.parametrize("links", ["retrieve_next_token", "retrieve_next_sibling"])
def test_the_check_catches_a_planted_bug(kernel, links: str) -> None:
    """Cut one link of the tree that the walk needs: the oracle must notice."""

    def buggy(**arguments: object) -> object:
        node = 0 if links == "retrieve_next_token" else 1
        arguments[links][0, node] = -1
        return kernel("verify_tree")(**arguments)

    case = Verifiable([TREE], [[9, 20, 21, 22, 30, 31]], [[21, 0, 31, 0, 0, 77]], slots=4)
    check_verify(kernel("verify_tree"), case)
    with pytest.raises(AssertionError, match="predicts"):
        check_verify(buggy, case)
