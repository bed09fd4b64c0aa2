"""The planner over random input: orders that must hold, decisions that must stay legal."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from planner_cases import CHAIN, LONG, TREE, profile, stats

from sglang_respec.core import PLAIN, RankCounts, SpeculationConfig, StepRecord
from sglang_respec.errors import RespecError
from sglang_respec.planner import Planner
from sglang_respec.planner.grid import Grid, isotonic
from sglang_respec.planner.profile import Profile
from sglang_respec.planner.trees import RankModel, best_nodes, expected_per_depth

SECONDS = st.floats(1e-6, 10.0)
CUBES = st.lists(
    st.lists(st.lists(SECONDS, min_size=3, max_size=3), min_size=3, max_size=3),
    min_size=3, max_size=3,
)  # fmt: skip
AXIS = (1.0, 4.0, 9.0)
INSIDE = st.floats(0.0, 9.0)
ANYWHERE = st.floats(0.0, 1e6)


@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_isotonic_is_monotone_keeps_the_sum_and_repeats(values):
    found = isotonic(values)
    slack = 1e-6  # sums of at most 30 numbers below 1e6 round by far less
    assert all(a <= b + slack for a, b in pairwise(found))
    assert abs(sum(found) - sum(values)) < slack
    assert all(abs(a - b) < slack for a, b in zip(isotonic(found), found, strict=True))


@given(CUBES, INSIDE, INSIDE, INSIDE, INSIDE)
def test_more_work_never_costs_less(cube, w, b, c, other):
    grid = Grid.from_measurements(AXIS, AXIS, AXIS, cube)
    slack = 1e-9  # rounding of a few products of numbers up to 10
    for one, two in (
        ((w, b, c), (other, b, c)), ((w, b, c), (w, other, c)), ((w, b, c), (w, b, other)),
    ):  # fmt: skip
        low, high = sorted((one, two))
        assert grid.at(*high) >= grid.at(*low) - slack


@given(CUBES, ANYWHERE, ANYWHERE, ANYWHERE)
def test_times_stay_positive_and_growing_beyond_the_grid(cube, w, b, c):
    grid = Grid.from_measurements(AXIS, AXIS, AXIS, cube)
    least = min(min(min(row) for row in plane) for plane in grid.seconds)
    assert grid.at(w, b, c) >= least * (1 - 1e-9)
    assert grid.at(w, 2.0, 2.0) <= grid.at(w + 10.0, 2.0, 2.0) * (1 + 1e-9)


@st.composite
def models(draw):
    candidates, depths = draw(st.integers(1, 4)), draw(st.integers(1, 5))

    def row():
        parts = draw(st.lists(st.floats(0.01, 1.0), min_size=candidates, max_size=candidates))
        scale = draw(st.floats(0.1, 0.99)) / sum(parts)
        return sorted((part * scale for part in parts), reverse=True)

    rows = [[row() for _ in range(depths)] for _ in range(2)]
    size = 1 + candidates + (depths - 1) * candidates**2
    nodes = depths + 1 if candidates == 1 else draw(st.integers(2, size))
    return RankModel(*rows), SpeculationConfig(depths, candidates, nodes)


@given(models())
def test_trees_are_trees(case):
    model, config = case
    nodes = best_nodes(model, config)
    assert len(nodes) == config.num_draft_tokens - 1
    for index, node in enumerate(nodes):
        assert -1 <= node.parent < index
        if node.parent >= 0:
            parent = nodes[node.parent]
            assert parent.expanded
            assert parent.depth + 1 == node.depth
            assert node.probability <= parent.probability
    per_depth = [
        sum(n.depth == d and n.expanded for n in nodes) for d in range(1, config.num_steps)
    ]
    assert all(count <= config.topk for count in per_depth)
    chances = expected_per_depth(model, config)
    assert all(0.0 <= b <= a + 1e-12 for a, b in zip([1.0, *chances], chances, strict=False))


@given(models())
def test_more_nodes_are_never_worth_less(case):
    model, config = case
    if config.topk == 1:
        return
    whole = SpeculationConfig(config.num_steps, config.topk, config.tree_size)
    assert sum(expected_per_depth(model, whole)) >= sum(expected_per_depth(model, config)) - 1e-12


steps = st.tuples(
    st.integers(1, 300),  # batch size
    st.floats(1.0, 1e5),  # context
    st.integers(0, 100_000),  # gap
    st.integers(0, 2),  # class
    st.one_of(st.none(), st.floats(1e-6, 1e3)),  # seconds
    st.lists(st.integers(0, 300), min_size=5, max_size=5),
    st.booleans(),  # push
)


@given(st.lists(steps, max_size=60))
def test_whatever_comes_a_plan_is_legal_and_the_table_is_json(history):
    planner = Planner(profile(), (CHAIN, LONG, TREE))
    for batch, context, gap, which, seconds, counts, push in history:
        seen = stats(batch, context, gap, which)
        plan = planner.decide(seen)
        assert plan.config in (PLAIN, CHAIN, LONG, TREE)
        assert plan.probe_tokens == 0 or plan.config == PLAIN
        topk = plan.config.topk
        ranks = (RankCounts(which, 1, True, tuple(counts[:topk]), counts[4]),)
        planner.record(
            StepRecord(
                plan.config, batch, context, seen.requests_per_class, batch + counts[3], seconds,
                ranks,
            )
        )  # fmt: skip
        if push:
            planner.on_drafter_push()
    table = json.loads(json.dumps(planner.table(), allow_nan=False))
    assert table["current"]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = list(json.loads(profile().to_json()))


@given(st.sampled_from(FIELDS), JSON)
def test_a_profile_with_any_field_replaced_loads_or_is_refused(name, value):
    document = json.loads(profile().to_json())
    document[name] = value
    try:
        made = Profile.from_document(document)
    except RespecError:
        return
    assert made.round_seconds(PLAIN, 8, 1000) > 0.0


@given(st.sampled_from(("widths", "batch_sizes", "context_tokens", "seconds")), JSON)
def test_a_stage_with_any_field_replaced_loads_or_is_refused(name, value):
    document = json.loads(profile().to_json())
    document["stages"]["verify"][name] = value
    try:
        made = Profile.from_document(document)
    except RespecError:
        return
    assert made.round_seconds(TREE, 8, 1000) > 0.0
