"""The policies of others: a table by batch size, a bandit, and SGLang's own object."""

from __future__ import annotations

import pytest
from planner_cases import CHAIN, LONG, profile, record, stats

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.rivals import Bandit, BatchTable

CHAINS = [SpeculationConfig(steps, 1, steps + 1) for steps in (1, 3, 5, 7)]


def test_a_batch_table_sees_the_batch_size_alone():
    table = BatchTable(profile(), {PLAIN: 1.0, CHAIN: 2.0, LONG: 2.5}, 500.0)
    small, large = (table.decide(stats(size)).config for size in (1, 5000))
    assert (small, large) == (CHAIN, PLAIN)
    for _ in range(50):
        table.record(record(CHAIN, batch=1, tokens=1, seconds=9.0))
    table.on_drafter_push()
    assert table.decide(stats(1, context=4000.0)).config == CHAIN
    assert table.table()["current"] == "3,1,4"


def test_a_bandit_finds_the_best_arm_of_each_range():
    bandit = Bandit((CHAIN, LONG), seed=0)
    speed = {PLAIN: 1.0, CHAIN: 3.0, LONG: 2.0}
    chosen = []
    for _ in range(600):
        for size in (2, 60):
            config = bandit.decide(stats(size)).config
            rate = speed[config] if size == 2 else 1.0 / speed[config]
            bandit.record(record(config, batch=size, tokens=size, seconds=size / rate))
            chosen.append((size, config))
    late = chosen[600:]
    for size, best in ((2, CHAIN), (60, PLAIN)):
        share = sum(each == (size, best) for each in late) / (len(late) / 2)
        # epsilon is 0.1, and a third of the exploring draws hits the best arm as well
        assert share == pytest.approx(1 - 0.1 * 2 / 3, abs=0.05)


@pytest.fixture(scope="module")
def adaptive():
    from sglang_respec.upstream.adaptive import SglangAdaptive

    return SglangAdaptive


def test_sglangs_policy_climbs_with_the_accepted_length(adaptive):
    policy = adaptive(CHAINS)
    assert policy.decide(stats(1)).config == SpeculationConfig(3, 1, 4)
    for _ in range(60):
        config = policy.decide(stats(1)).config
        policy.record(record(config, batch=1, tokens=1 + config.num_steps))
    assert policy.decide(stats(1)).config == SpeculationConfig(7, 1, 8)
    for _ in range(60):
        policy.record(record(policy.decide(stats(1)).config, batch=1, tokens=1))
    assert policy.decide(stats(1)).config == SpeculationConfig(1, 1, 2)
    assert policy.decide(stats(100)).config == PLAIN
    policy.on_drafter_push()
    assert policy.table()["policy"] == "sglang-adaptive"


def test_sglangs_policy_needs_its_chains(adaptive):
    with pytest.raises(RespecError, match=r"\[5, 7\]"):
        adaptive(CHAINS[:2])
