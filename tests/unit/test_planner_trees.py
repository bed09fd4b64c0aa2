"""The nodes of a tree, held against SGLang's rule written with tensors."""

from __future__ import annotations

import random

import pytest
from sglang_tree_rule import draft

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.planner.trees import RankModel, best_nodes, expected_per_depth

CONFIGS = [
    SpeculationConfig.parse(text)
    for text in ("1,1,2", "4,1,5", "1,4,5", "1,4,3", "2,2,7", "3,4,8", "3,4,16", "5,4,16", "5,8,32",
                 "5,8,60", "3,3,22")
]  # fmt: skip


def falling(rng: random.Random, length: int) -> list[float]:
    cuts = [rng.random() for _ in range(length + 1)]
    return sorted((cut / sum(cuts) for cut in cuts[:length]), reverse=True)


def paths_of(nodes):
    paths = []
    for node in nodes:
        paths.append((*(paths[node.parent] if node.parent >= 0 else ()), node.rank))
    return paths


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_the_nodes_are_those_sglang_keeps(config, seed):
    rng = random.Random(seed)
    first = [falling(rng, config.topk) for _ in range(config.num_steps)]
    other = [falling(rng, config.topk) for _ in range(config.num_steps)]

    def rows_of(path):
        return (first if all(rank == 1 for rank in path) else other)[len(path)]

    nodes = best_nodes(RankModel(first, other), config)
    verified, expanded = draft(rows_of, config)
    paths = paths_of(nodes)
    assert set(paths) == verified
    assert len(paths) == config.num_draft_tokens - 1
    for path, node in zip(paths, nodes, strict=True):
        assert node.expanded == (path in expanded)
        assert node.first_ranks == (set(path) == {1})
        chance = 1.0
        for depth, rank in enumerate(path):
            chance *= rows_of(path[:depth])[rank - 1]
        assert node.probability == pytest.approx(chance)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_expected_per_depth_sums_the_nodes(config):
    rng = random.Random(7)
    rows = [falling(rng, config.topk) for _ in range(config.num_steps)]
    model = RankModel(rows, rows)
    sums = [0.0] * config.num_steps
    for node in best_nodes(model, config):
        sums[node.depth - 1] += node.probability
    assert expected_per_depth(model, config) == pytest.approx(sums)


def test_plain_decoding_has_no_nodes():
    assert best_nodes(RankModel([[0.5]], [[0.5]]), PLAIN) == []
    assert expected_per_depth(RankModel([[0.5]], [[0.5]]), PLAIN) == []
