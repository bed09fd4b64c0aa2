"""Which configurations are captured at the start."""

from __future__ import annotations

import pytest
from planner_cases import CHAIN, LONG, TREE, grid, profile

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.choose import choose_configs
from sglang_respec.planner.contest import BUNDLED, CONFIGS, load_profile

MIB = 2**20
GRAPHS = {CHAIN: 100 * MIB, LONG: 300 * MIB, TREE: 200 * MIB}


def test_the_largest_come_first_and_plain_is_not_listed():
    chosen = choose_configs(profile(), (PLAIN, CHAIN, TREE, LONG, CHAIN))
    assert chosen == sorted(chosen, key=lambda each: -each.num_draft_tokens)
    assert set(chosen) <= {CHAIN, TREE, LONG}
    assert LONG in chosen


def test_what_can_never_win_is_left_out():
    hopeless = profile(rounds={LONG: grid(lambda w, b, c: 10.0)})
    assert LONG not in choose_configs(hopeless, (CHAIN, LONG))


def test_a_budget_is_kept_and_spent_on_what_gains_most():
    made = profile(graph_bytes=GRAPHS)
    for budget in (100, 200, 350, 450, 600):
        chosen = choose_configs(made, (CHAIN, LONG, TREE), budget * MIB)
        assert chosen
        assert sum(GRAPHS[each] for each in chosen) <= budget * MIB
    assert choose_configs(made, (CHAIN, LONG, TREE), 100 * MIB) == [CHAIN]


def test_an_impossible_budget_is_one_sentence():
    with pytest.raises(RespecError, match=r"50 MiB holds none.*3,1,4, needs 100 MiB") as caught:
        choose_configs(profile(graph_bytes=GRAPHS), (CHAIN, LONG, TREE), 50 * MIB)
    assert "raise the budget" in str(caught.value)


def test_a_configuration_without_times_is_refused():
    bare = profile(stages={"plain": grid(lambda w, b, c: 0.01)})
    with pytest.raises(RespecError, match="no step times for 3,1,4"):
        choose_configs(bare, (CHAIN,))


def test_a_large_batch_only_needs_fewer():
    made = load_profile("gpu_llama8b")
    assert len(choose_configs(made, CONFIGS, max_batch_size=1)) <= len(
        choose_configs(made, CONFIGS)
    )


@pytest.mark.parametrize("name", BUNDLED)
def test_no_more_than_asked(name):
    candidates = [SpeculationConfig(steps, 1, steps + 1) for steps in range(1, 12)] + list(CONFIGS)
    assert 1 <= len(choose_configs(load_profile(name), candidates)) <= 8
    assert len(choose_configs(load_profile(name), candidates, limit=2)) == 2


def test_nothing_to_choose_from():
    assert choose_configs(profile(), ()) == []
    assert choose_configs(profile(), (PLAIN,), 0) == []
