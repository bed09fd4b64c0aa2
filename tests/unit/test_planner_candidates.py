"""Which shapes are measured at a start, and which of them are held ready."""

from __future__ import annotations

import itertools

import pytest
from planner_cases import CHAIN, LONG, TREE, grid, profile

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.planner.candidates import candidate_shapes, shapes_to_keep
from sglang_respec.planner.planner import MAX_CONFIGS
from sglang_respec.policies import check_within

MIB = 2**20


def servers_shapes():
    for steps, topk in itertools.product((1, 2, 3, 5, 8), (1, 2, 4, 8)):
        size = 1 + topk + (steps - 1) * topk * topk
        for nodes in {size, min(size, 16), 2} if topk > 1 else {steps + 1}:
            yield SpeculationConfig(steps, topk, nodes)


@pytest.mark.parametrize("own", servers_shapes(), ids=str)
def test_candidates_fit_the_buffers_and_the_planner(own):
    found = candidate_shapes(own)
    assert found[0] == own
    assert len(set(found)) == len(found) <= MAX_CONFIGS
    assert PLAIN not in found
    check_within(own, found)


def test_chains_and_trees_are_among_them():
    chains = candidate_shapes(SpeculationConfig(5, 1, 6))
    assert {each.num_steps for each in chains} == {1, 2, 3, 5}
    mixed = candidate_shapes(SpeculationConfig(5, 4, 16))
    assert {each.topk for each in mixed} == {1, 2, 4}


def test_who_names_shapes_gets_those():
    own = SpeculationConfig(5, 4, 16)
    assert candidate_shapes(own, (CHAIN, PLAIN, own, CHAIN)) == (own, CHAIN)


def test_what_is_kept_begins_with_the_servers_own():
    kept = shapes_to_keep(profile(), (CHAIN, LONG, TREE), None)
    assert kept[0] == CHAIN
    assert LONG in kept
    hopeless = profile(rounds={LONG: grid(lambda w, b, c: 10.0)})
    assert LONG not in shapes_to_keep(hopeless, (CHAIN, LONG, TREE), None)
    assert shapes_to_keep(hopeless, (LONG, CHAIN), None)[0] == LONG, "its graphs are there anyway"


def test_the_budget_is_for_the_others():
    sizes = profile(graph_bytes={CHAIN: 900 * MIB, LONG: 300 * MIB, TREE: 200 * MIB})
    for budget in (0, 199, 250, 300, 500):
        kept = shapes_to_keep(sizes, (CHAIN, LONG, TREE), budget * MIB)
        assert kept[0] == CHAIN
        assert sum(sizes.graph_bytes[each] for each in kept[1:]) <= budget * MIB
    assert shapes_to_keep(sizes, (CHAIN, LONG, TREE), 0) == (CHAIN,)
