"""verify_sampled_tree against the oracle's tokens and the oracle's walk, in both schedules."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from sampling_cases import Rows, logprob_bound, parameter_tensors, random_rows
from sampling_oracle import Parameters
from tree_cases import random_trees, table
from tree_oracle import Tree

SCHEDULES = ("nodes", "levels")
DEEP = 19  # a seed whose trees are walked three nodes deep, and not all of them


@pytest.fixture
def verify_sampled_tree(verifier):
    return verifier


@dataclass
class Trees:
    trees: list[Tree]
    rows: Rows  # one request per tree
    candidates: list[list[int]]
    max_depth: int
    root_only: list[bool] | None = None


def drafted(
    seed: int, batch: int, nodes: int, vocabulary: int, max_depth: int, **options: object
) -> Trees:
    """Random trees whose children carry the target's token as often as not."""
    rows = random_rows(seed, batch, nodes, vocabulary, **options)
    trees = random_trees(seed, batch, nodes, 3)
    draw = random.Random(seed)
    candidates = []
    for request, tree in enumerate(trees):
        tokens = [draw.randrange(vocabulary) for _ in range(nodes)]
        for node in range(1, nodes):
            wanted = rows.expected(request * nodes + tree.parents[node])[0]
            if wanted >= 0 and draw.random() < 0.6:
                tokens[node] = wanted
        candidates.append(tokens)
    return Trees(trees, rows, candidates, max_depth)


def arguments_of(case: Trees, device: str = "cpu") -> dict:
    n = case.trees[0].num_nodes
    root_only = case.root_only
    return {
        "logits": case.rows.logits.to(device),
        "positions": torch.tensor(case.rows.positions, device=device),
        "candidates": table(case.candidates, n, device),
        "retrieve_index": torch.arange(len(case.trees) * n, device=device).view(-1, n),
        "retrieve_next_token": table([t.first_children() for t in case.trees], n, device),
        "retrieve_next_sibling": table([t.next_siblings() for t in case.trees], n, device),
        **parameter_tensors(case.rows.parameters, device),
        "filtered": case.rows.filtered,
        "max_depth": case.max_depth,
        "root_only": None if root_only is None else torch.tensor(root_only, device=device),
    }


def check_trees(kernel, case: Trees, schedule: str, device: str = "cpu", **more: object) -> None:
    """Compare everything that is returned with the oracle."""
    got = kernel(**arguments_of(case, device), schedule=schedule, **more)
    n = case.trees[0].num_nodes
    predicts = [0] * (n * len(case.trees))
    for request, tree in enumerate(case.trees):
        row = request * n
        chosen = [case.rows.expected(row + node) for node in range(n)]
        slots = 1 if case.root_only and case.root_only[request] else case.max_depth
        path = tree.walk(case.candidates[request], [token for token, _ in chosen], slots)
        padding = [-1] * (case.max_depth - len(path))
        assert got.accept_index[request].tolist() == [row + node for node in path] + padding
        assert got.accept_token_num[request].item() == len(path) - 1
        assert got.row_failed[request].item() == (chosen[path[-1]][0] < 0)
        for slot, node in enumerate(path):
            token, logprob = chosen[node]
            predicts[row + node] = max(token, 0)
            logged = got.logprobs[request, slot].item()
            if token < 0:
                assert logged == 0.0
                continue
            temperature = case.rows.parameters[request].temperature
            bound = logprob_bound(case.rows.logits[row + node], temperature, logprob)
            assert abs(logged - logprob) <= bound
        assert got.logprobs[request, len(path) :].tolist() == [0.0] * len(padding)
    assert got.predicts.tolist() == predicts
    kinds = [torch.int32, torch.int32, torch.int32, torch.float32, torch.bool]
    assert [each.dtype for each in got] == kinds


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(("batch", "nodes", "max_depth"), [(2, 1, 3), (2, 5, 3)])
def test_trees(verify_sampled_tree, batch, nodes, max_depth, filtered, schedule) -> None:
    case = drafted(nodes, batch, nodes, 40, max_depth, filtered=filtered)
    check_trees(verify_sampled_tree, case, schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_walks_go_deep(verify_sampled_tree, schedule: str) -> None:
    """The generator does accept: a walk that stops at the root would pass otherwise."""
    case = drafted(DEEP, 3, 5, 30, 4)
    check_trees(verify_sampled_tree, case, schedule)
    got = verify_sampled_tree(**arguments_of(case), schedule=schedule)
    assert int(got.accept_token_num.max()) >= 3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_root_only(verify_sampled_tree, schedule: str) -> None:
    case = drafted(DEEP, 3, 5, 30, 4)
    case.root_only = [request % 2 == 0 for request in range(3)]
    check_trees(verify_sampled_tree, case, schedule)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_visited_row_that_is_unusable_fails_its_request_alone(
    verify_sampled_tree, schedule: str
) -> None:
    case = drafted(DEEP, 3, 5, 30, 4)
    got = verify_sampled_tree(**arguments_of(case), schedule=schedule)
    deep = int(got.accept_token_num.argmax())
    visited = got.accept_index[deep].tolist()
    case.rows.logits[visited[2], 3] = math.nan
    case.rows.logits[5 * ((deep + 1) % 3)] = -math.inf  # another request's root
    unvisited = next(row for row in range(5 * deep, 5 * deep + 5) if row not in visited)
    case.rows.logits[unvisited] = math.nan
    check_trees(verify_sampled_tree, case, schedule)
    failed = verify_sampled_tree(**arguments_of(case), schedule=schedule).row_failed
    assert failed.sum().item() == 2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_all_greedy(verify_sampled_tree, schedule: str) -> None:
    case = drafted(3, 2, 4, 30, 3, filtered=False)
    greedy = [Parameters(1.0, 1) for _ in case.trees]
    case.rows = Rows(case.rows.logits, case.rows.positions, greedy, filtered=False)
    check_trees(verify_sampled_tree, case, schedule)
    check_trees(verify_sampled_tree, case, schedule, greedy=True)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_last_of_four_siblings_is_found(verify_sampled_tree, schedule: str) -> None:
    case = drafted(2, 1, 6, 50, 3)
    case.trees = [Tree((None, 0, 0, 0, 0, 4))]
    wanted = [case.rows.expected(row)[0] for row in (0, 4)]
    others = [token for token in range(50) if token not in wanted]
    case.candidates = [[others[0], others[1], others[2], others[3], *wanted]]
    check_trees(verify_sampled_tree, case, schedule)
    got = verify_sampled_tree(**arguments_of(case), schedule=schedule)
    assert got.accept_index.tolist() == [[0, 4, 5]]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_walk_ends_where_no_sibling_fits(verify_sampled_tree, schedule: str) -> None:
    """The last sibling is the tree's last node: neither it nor what would follow is accepted."""
    case = drafted(2, 1, 4, 50, 3)
    case.trees = [Tree((None, 0, 0, 0))]
    wanted = case.rows.expected(0)[0]
    case.candidates = [[token for token in range(50) if token != wanted][:4]]
    check_trees(verify_sampled_tree, case, schedule)
    got = verify_sampled_tree(**arguments_of(case), schedule=schedule)
    assert got.accept_index.tolist() == [[0, -1, -1]]
