"""build_tree, both implementations, against the oracle and against trees worked out by hand."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_cases import POISON_BYTE, Drafted, build_arguments, check_build, draft, steps_for

from respec_kernels import TreeMaskMode, implementation

FEW = settings(max_examples=60, deadline=None, derandomize=True)
FULL, QLEN, PACKED = TreeMaskMode
#         root        chosen entries 0, 1, 3 (step 1), 4, 6 (children of 0), 9 (child of 1),
#        / | \        and 20, whose parent is entry 6.
#       1  2  3
#      /\  |         with topk 4: slot 1 holds entry 0, slot 2 entry 1, slot 5 entry 6
#     4  5 6
#        |
#        7
BY_HAND = Drafted(
    topk=4,
    steps=3,
    nodes=8,
    chosen=[[0, 1, 3, 4, 6, 9, 20]],
    parent_list=[[-1, 0, 1, 2, 3, 6, 9, 12, 13]],
    seq_lens=[5],
)


def test_tree_worked_out_by_hand(kernel) -> None:
    arguments = build_arguments(BY_HAND, QLEN)
    kernel("build_tree")(**arguments)
    assert arguments["retrieve_next_token"].tolist() == [[1, 4, 6, -1, -1, 7, -1, -1]]
    assert arguments["retrieve_next_sibling"].tolist() == [[-1, 2, 3, -1, 5, -1, -1, -1]]
    assert arguments["retrieve_index"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert arguments["positions"].tolist() == [5, 6, 6, 6, 7, 7, 7, 8]
    assert arguments["tree_mask"][:64].view(8, 8).tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 0, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 0, 1],
    ]


def test_packed_words_worked_out_by_hand(kernel) -> None:
    arguments = build_arguments(BY_HAND, PACKED)
    kernel("build_tree")(**arguments)
    words = [0b1, 0b11, 0b101, 0b1001, 0b10011, 0b100011, 0b1000101, 0b10100011]
    assert arguments["tree_mask"][:8].tolist() == words


SIZES = [  # batch, topk, nodes
    (1, 1, 1),
    (3, 1, 2),
    (7, 1, 8),
    (1, 3, 4),
    (7, 2, 4),
    (3, 4, 16),
    (7, 8, 33),
    (1, 8, 63),
    (3, 16, 64),
    (3, 1, 64),
]


@pytest.mark.parametrize(
    ("size", "mode"),
    [(size, mode) for size in SIZES for mode in TreeMaskMode if mode != PACKED or size[2] <= 32],
)
def test_sizes(kernel, size: tuple[int, int, int], mode: TreeMaskMode) -> None:
    batch, topk, nodes = size
    lengths = [(5 * request) % 17 for request in range(batch)]  # 0 among them
    steps = max(1, nodes - 1) if topk == 1 else steps_for(nodes, topk) + 2
    check_build(kernel("build_tree"), draft(nodes, lengths, topk, steps, nodes), mode)


def test_full_masks_of_many_requests(kernel) -> None:
    """More requests than the Triton kernel sums lengths of at a time."""
    lengths = [request % 3 for request in range(260)]
    check_build(kernel("build_tree"), draft(1, lengths, 2, 2, 3), FULL)


def test_nothing_is_written_beyond_a_full_mask_that_is_too_small(kernel) -> None:
    arguments = build_arguments(BY_HAND, FULL)
    whole = arguments["tree_mask"]
    arguments["tree_mask"] = whole[:70]  # 8 * (5 + 8) cells are needed
    with contextlib.suppress(ValueError):  # only the host can refuse, if it knows the lengths
        kernel("build_tree")(**arguments)
    assert whole[70:].tolist() == [POISON_BYTE] * (len(whole) - 70)


def test_a_full_mask_that_is_too_small_is_refused_where_lengths_are_known() -> None:
    arguments = build_arguments(BY_HAND, FULL)
    arguments["tree_mask"] = arguments["tree_mask"][:70]
    with pytest.raises(ValueError, match="allocate n"):
        implementation("build_tree", False)(**arguments)


@FEW
@given(data=st.data())
def test_random_trees(kernel, data: st.DataObject) -> None:
    topk = data.draw(st.integers(1, 8))
    steps = data.draw(st.integers(1, 6))
    entries = topk + (steps - 1) * topk * topk
    nodes = data.draw(st.integers(1, min(entries + 1, 24)))
    lengths = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    levels = data.draw(st.sampled_from([0, 0, 2, 3]))
    mode = data.draw(st.sampled_from(list(TreeMaskMode)))
    seed = data.draw(st.integers(0, 2**31))
    check_build(kernel("build_tree"), draft(seed, lengths, topk, steps, nodes, levels), mode)


@pytest.mark.parametrize("mode", list(TreeMaskMode))
def test_orphans_attend_to_themselves_and_the_root_and_are_linked_by_nobody(kernel, mode) -> None:
    # Entry 6 is chosen, its parent 0 is not; 20 hangs on 6, 9 hangs on 1, which is chosen.
    case = replace(BY_HAND, nodes=6, chosen=[[1, 3, 6, 9, 20]], seq_lens=[2])
    check_build(kernel("build_tree"), case, mode)
    arguments = build_arguments(case, QLEN)
    kernel("build_tree")(**arguments)
    assert arguments["retrieve_next_token"].tolist() == [[1, 4, -1, 5, -1, -1]]
    assert arguments["retrieve_next_sibling"].tolist() == [[-1, 2, -1, -1, -1, -1]]


def test_ties_do_produce_orphans() -> None:
    """The generator covers what the test above is about."""
    trees = [tree for seed in range(40) for tree in draft(seed, [1], 2, 4, 6, 2).trees]
    assert any(-1 in tree.parents for tree in trees)


def test_the_root_slot_of_the_parent_list_is_never_read(kernel) -> None:
    poisoned = [[10**12, *BY_HAND.parent_list[0][1:]]]
    check_build(kernel("build_tree"), replace(BY_HAND, parent_list=poisoned), FULL)


def test_bool_mask_and_wide_words(kernel) -> None:
    """Callers spell a byte mask as bool too, and a packed one in words of its width."""
    for nodes, dtype, mode in ((8, torch.bool, QLEN), (16, torch.uint16, PACKED)):
        case = draft(3, [4, 0, 9], 4, 3, nodes)
        arguments = build_arguments(case, mode)
        kernel("build_tree")(**arguments)
        spelt = build_arguments(case, mode)
        spelt["tree_mask"] = torch.zeros_like(spelt["tree_mask"]).view(dtype)
        kernel("build_tree")(**spelt)
        written = arguments["tree_mask"].shape[0] - 16
        assert torch.equal(
            spelt["tree_mask"].view(torch.uint8)[:written], arguments["tree_mask"][:written]
        )


def test_an_empty_batch_is_left_alone(kernel) -> None:
    arguments = build_arguments(BY_HAND, QLEN)
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor) and name != "tree_mask":
            arguments[name] = value[:0].contiguous()
    before = arguments["tree_mask"].clone()
    kernel("build_tree")(**arguments)
    assert torch.equal(arguments["tree_mask"], before)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"seq_lens": torch.tensor([5], dtype=torch.int32)}, r"seq_lens\.to\(torch\.int64\)"),
        ({"positions": torch.empty(7, dtype=torch.int64)}, "positions must have shape"),
        ({"parent_list": torch.zeros(1, 8, dtype=torch.int64)}, "parent_list must have shape"),
        (
            {"retrieve_next_token": torch.zeros(1, 16, dtype=torch.int64)[:, ::2]},
            r"retrieve_next_token\.contiguous\(\)",
        ),
        ({"tree_mask": torch.zeros(8, 8, dtype=torch.bool)}, r"tree_mask\.flatten\(\)"),
        ({"tree_mask": torch.zeros(63, dtype=torch.bool)}, "allocate a larger buffer"),
        ({"tree_mask": torch.zeros(64, dtype=torch.int64)}, "one byte per cell"),
        ({"num_verify_tokens": 65}, "use 1 to 64 nodes"),
        ({"topk": 0}, "1 or more"),
    ],
)
def test_wrong_arguments_name_the_remedy(kernel, change, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        kernel("build_tree")(**{**build_arguments(BY_HAND, QLEN), **change})


def test_too_many_nodes_for_a_packed_mask(kernel) -> None:
    with pytest.raises(ValueError, match="use QLEN_ONLY"):
        kernel("build_tree")(
            **build_arguments(draft(0, [1], 8, 2, 33), QLEN) | {"tree_mask_mode": PACKED}
        )


@pytest.mark.parametrize(
    "output",
    ["positions", "retrieve_index", "retrieve_next_token", "retrieve_next_sibling", "tree_mask"],
)
def test_the_check_catches_a_planted_bug(kernel, output: str) -> None:
    def buggy(**arguments: object) -> None:
        kernel("build_tree")(**arguments)
        arguments[output].view(-1)[5] += 1

    check_build(kernel("build_tree"), BY_HAND, QLEN)
    with pytest.raises(AssertionError, match=output):
        check_build(buggy, BY_HAND, QLEN)
