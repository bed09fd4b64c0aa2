"""Inputs of the tree kernels, and the checks that hold an implementation to the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tree_oracle import Tree, tree_of_entries

from respec_kernels import TreeMaskMode, packed_bytes

POISON = -77  # what integer outputs hold before a kernel runs
POISON_BYTE = 0x5A
TAIL_BYTES = 16  # a mask buffer is longer than one batch needs

Kernel = Callable[..., Any]


@dataclass(frozen=True)
class Drafted:
    """What a drafter hands to ``build_tree``, and the trees that it means."""

    topk: int
    steps: int
    nodes: int
    chosen: list[list[int]]
    parent_list: list[list[int]]
    seq_lens: list[int]

    @property
    def trees(self) -> list[Tree]:
        rows = zip(self.chosen, self.parent_list, strict=True)
        return [tree_of_entries(chosen, parents, self.topk) for chosen, parents in rows]


def draft(
    seed: int, seq_lens: Sequence[int], topk: int, steps: int, nodes: int, score_levels: int = 0
) -> Drafted:
    """Draft as a beam of ``topk`` does: every step scores all children of the best ``topk``.

    With ``score_levels`` the scores take only so many values, 1 among them. Then a child may tie
    with its parent, and the choice of the best entries may leave a child without its parent.
    """
    generator = torch.Generator().manual_seed(seed)

    def probabilities(*shape: int) -> torch.Tensor:
        values = torch.rand(*shape, generator=generator)
        return torch.ceil(values * score_levels) / score_levels if score_levels else values

    batch = len(seq_lens)
    beam = probabilities(batch, topk)
    scores = [beam]
    parents = [torch.arange(-1, topk).expand(batch, -1)]
    for step in range(1, steps):
        children = (beam.unsqueeze(2) * probabilities(batch, topk, topk)).flatten(1)
        beam, best = children.topk(topk, dim=1)
        scores.append(children)
        parents.append(best + topk + (step - 1) * topk * topk)
    chosen = torch.cat(scores, 1).topk(nodes - 1, dim=1).indices.sort(dim=1).values
    # The last step's beam has no children, so nobody asks for its entries.
    slots = torch.cat(parents[:-1], 1) if steps > 1 else torch.empty(batch, 0, dtype=torch.long)
    return Drafted(topk, steps, nodes, chosen.tolist(), slots.tolist(), list(seq_lens))


def table(rows: list[list[int]], width: int, device: str) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(rows), width)


def build_arguments(case: Drafted, mode: TreeMaskMode, device: str = "cpu") -> dict[str, Any]:
    """Return the arguments of ``build_tree``, its outputs poisoned."""
    batch, n = len(case.seq_lens), case.nodes
    cells = {
        TreeMaskMode.FULL_MASK: n * sum(length + n for length in case.seq_lens),
        TreeMaskMode.QLEN_ONLY: batch * n * n,
        TreeMaskMode.QLEN_ONLY_BITPACKING: batch * n * packed_bytes(n),
    }[mode]

    def poisoned(*shape: int) -> torch.Tensor:
        return torch.full(shape, POISON, dtype=torch.int64, device=device)

    return {
        "parent_list": table(case.parent_list, len(case.parent_list[0]), device),
        "top_scores_index": table(case.chosen, n - 1, device),
        "seq_lens": torch.tensor(case.seq_lens, dtype=torch.int64, device=device),
        "tree_mask": torch.full(
            (cells + TAIL_BYTES,), POISON_BYTE, dtype=torch.uint8, device=device
        ),
        "positions": poisoned(batch * n),
        "retrieve_index": poisoned(batch, n),
        "retrieve_next_token": poisoned(batch, n),
        "retrieve_next_sibling": poisoned(batch, n),
        "topk": case.topk,
        "spec_steps": case.steps,
        "num_verify_tokens": n,
        "tree_mask_mode": mode,
    }


def expected_mask_bytes(case: Drafted, mode: TreeMaskMode) -> list[int]:
    """Return the whole buffer byte by byte, poison where nothing may be written."""
    n, cells = case.nodes, []
    for tree, length in zip(case.trees, case.seq_lens, strict=True):
        for row in tree.mask():
            if mode == TreeMaskMode.QLEN_ONLY_BITPACKING:
                word = sum(1 << node for node, attended in enumerate(row) if attended)
                cells += word.to_bytes(packed_bytes(n), "little")
                continue
            if mode == TreeMaskMode.FULL_MASK:
                cells += [POISON_BYTE] * length
            cells += [int(attended) for attended in row]
    return cells + [POISON_BYTE] * TAIL_BYTES


def check_build(build_tree: Kernel, case: Drafted, mode: TreeMaskMode, device: str = "cpu") -> None:
    """Run one implementation over poisoned memory and compare every cell with the oracle."""
    arguments = build_arguments(case, mode, device)
    before = {name: arguments[name].clone() for name in ("parent_list", "top_scores_index")}
    build_tree(**arguments)
    n = case.nodes
    trees = case.trees
    offsets = range(0, len(trees) * n, n)
    expected = {
        "positions": [
            length + depth
            for tree, length in zip(trees, case.seq_lens, strict=True)
            for depth in tree.depths()
        ],
        "retrieve_index": [list(range(offset, offset + n)) for offset in offsets],
        "retrieve_next_token": [tree.first_children() for tree in trees],
        "retrieve_next_sibling": [tree.next_siblings() for tree in trees],
        "tree_mask": expected_mask_bytes(case, mode),
    }
    for name, values in expected.items():
        assert arguments[name].tolist() == values, f"{name} of {case} in {mode.name}"
    for name, values_before in before.items():
        assert torch.equal(arguments[name], values_before), f"{name} was written"


@dataclass(frozen=True)
class Verifiable:
    """Trees with their candidate tokens and what the target says after each node."""

    trees: list[Tree]
    candidates: list[list[int]]
    targets: list[list[int]]
    slots: int
    topk: int = -1


def verify_arguments(case: Verifiable, device: str = "cpu") -> dict[str, Any]:
    """Return the arguments of ``verify_tree``, its outputs poisoned."""
    batch, n = len(case.trees), case.trees[0].num_nodes

    def poisoned(*shape: int) -> torch.Tensor:
        return torch.full(shape, POISON, dtype=torch.int32, device=device)

    return {
        "predicts": poisoned(batch * n),
        "accept_index": poisoned(batch, case.slots),
        "accept_token_num": poisoned(batch),
        "candidates": table(case.candidates, n, device),
        "retrieve_index": torch.arange(batch * n, device=device).view(batch, n),
        "retrieve_next_token": table([t.first_children() for t in case.trees], n, device),
        "retrieve_next_sibling": table([t.next_siblings() for t in case.trees], n, device),
        "target_predict": table(case.targets, n, device),
        "topk": case.topk,
    }


def check_verify(verify_tree: Kernel, case: Verifiable, device: str = "cpu") -> None:
    """Run one implementation over poisoned memory and compare every cell with the oracle."""
    arguments = verify_arguments(case, device)
    outputs = verify_tree(**arguments)
    n = case.trees[0].num_nodes
    predicts = [POISON] * (len(case.trees) * n)
    accept_index, accept_num = [], []
    rows = zip(case.trees, case.candidates, case.targets, strict=True)
    for request, (tree, candidates, targets) in enumerate(rows):
        path = tree.walk(candidates, targets, case.slots)
        for node in path:
            predicts[request * n + node] = targets[node]
        accept_index.append([request * n + node for node in path] + [-1] * (case.slots - len(path)))
        accept_num.append(len(path) - 1)
    for name, values in (
        ("predicts", predicts),
        ("accept_index", accept_index),
        ("accept_token_num", accept_num),
    ):
        assert arguments[name].tolist() == values, f"{name} of {case}"
    for output, name in zip(outputs, ("predicts", "accept_index", "accept_token_num"), strict=True):
        assert output is arguments[name], f"{name} is returned as given"


def random_trees(seed: int, batch: int, nodes: int, most_children: int) -> list[Tree]:
    """Return trees of any depth: every node hangs on some earlier one that has room."""
    generator = torch.Generator().manual_seed(seed)
    trees = []
    for _ in range(batch):
        parents: list[int | None] = [None]
        children = [0] * nodes
        for _ in range(1, nodes):
            room = [p for p in range(len(parents)) if children[p] < most_children]
            parent = room[int(torch.randint(len(room), (), generator=generator))]
            children[parent] += 1
            parents.append(parent)
        trees.append(Tree(tuple(parents)))
    return trees


def random_verifiable(
    seed: int, batch: int, nodes: int, most_children: int, vocabulary: int, slots: int
) -> Verifiable:
    """Return random trees with tokens from a vocabulary small enough for matches and ties."""
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = torch.randint(vocabulary, (2, batch, nodes), generator=generator).tolist()
    trees = random_trees(seed, batch, nodes, most_children)
    return Verifiable(trees, tokens[0], tokens[1], slots, most_children)


def agreeing(trees: list[Tree], slots: int) -> Verifiable:
    """Return candidates and targets that agree on every first child: the longest first path."""
    candidates = [[100 + node for node in range(tree.num_nodes)] for tree in trees]
    targets = [[100 + child for child in tree.first_children()] for tree in trees]
    return Verifiable(trees, candidates, targets, slots)


def steps_for(nodes: int, topk: int) -> int:
    """Return the fewest steps whose entries suffice for so many nodes."""
    if nodes - 1 <= topk:
        return 1
    return 1 + math.ceil((nodes - 1 - topk) / (topk * topk))
