"""What is decided: the fastest configuration, changes that pay, probes that teach."""

from __future__ import annotations

import json
import random
from itertools import groupby, pairwise

import pytest
from planner_cases import CHAIN, LONG, TREE, chain_ranks, grid, profile, record, stats

from sglang_respec.core import PLAIN, PLAN_REASONS, RankCounts, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner import Always, Fuzz, Planner, make_policy
from sglang_respec.planner.contest import load_profile
from sglang_respec.planner.planner import FIRST_ROUNDS, MAX_CONFIGS, PROBE_STRETCH

CONFIGS = (CHAIN, LONG, TREE)


def serve(planner, rounds, probability, batch=8, gap=0, speed=1.0, which=0):
    """Serve as a worker would, the drafter right so often at every depth; returns the plans."""
    plans = []
    for _ in range(rounds):
        plan = planner.decide(stats(batch, gap=gap if plans_plain(plans) else 0, which=which))
        plans.append(plan)
        steps, seen = plan.config.num_steps, batch
        if plan.config.is_plain:
            steps, seen = min(1, plan.probe_tokens), plan.probe_tokens
        ranks = chain_ranks(probability, 1000 * seen, steps, which) if seen else ()
        ranks = tuple(scaled(each, plan.config.topk) for each in ranks)
        accepted = sum(probability**d for d in range(plan.config.num_steps + 1))
        seconds = speed * planner.cost.profile.round_seconds(plan.config, batch, 1000.0)
        planner.record(
            record(
                plan.config, batch, ranks=ranks, seconds=seconds, tokens=batch * accepted,
                which=which,
            )
        )  # fmt: skip
    return plans


def plans_plain(plans):
    return not plans or plans[-1].config.is_plain


def scaled(counts, topk):
    """A thousandth, with no hits beyond rank 1, as wide as the tree that ran."""
    return RankCounts(
        counts.temperature_class, counts.depth, counts.first_ranks,
        (counts.hits[0] / 1000, *(0.0,) * (topk - 1)), counts.misses / 1000,
    )  # fmt: skip


def mostly(plans):
    configs = [plan.config for plan in plans]
    return max(set(configs), key=configs.count)


def test_the_first_rounds_are_plain_and_ask_for_guesses():
    planner = Planner(profile(), CONFIGS)
    plans = serve(planner, FIRST_ROUNDS, 0.9)
    assert {plan.config for plan in plans} == {PLAIN}
    assert [bool(plan.probe_tokens) for plan in plans] == [True, False, False, False]
    assert {plan.reason for plan in plans} == {"first"}


def test_a_good_drafter_runs_deep_a_poor_one_not_at_all():
    assert mostly(serve(Planner(profile(), CONFIGS), 400, 0.95)[-100:]) == LONG
    assert mostly(serve(Planner(profile(), CONFIGS), 400, 0.05)[-100:]) == PLAIN


def test_a_large_batch_decodes_plainly_where_rows_cost():
    """At 64 requests the target takes 10 ms + 1.3 ms a node; at 2000 it is 40 ms a node."""
    planner = Planner(profile(), CONFIGS)
    assert mostly(serve(planner, 400, 0.5, batch=8)[-100:]) != PLAIN
    assert mostly(serve(planner, 50, 0.5, batch=2000)[-20:]) == PLAIN


def test_a_wrong_profile_is_put_right():
    """The profile thinks the long chain dear; on this machine it costs what the short one does."""
    dear = profile(rounds={LONG: grid(lambda w, b, c: 0.060)})
    planner = Planner(dear, CONFIGS)
    assert mostly(serve(planner, 200, 0.9)[-50:]) == CHAIN
    place = planner.cost.place(8, 1000.0)
    for _ in range(200):
        planner.cost.record(planner.configs.index(LONG), place, 0.020)
    assert mostly(serve(planner, 50, 0.9)[-50:]) in (LONG, CHAIN)
    table = planner.table()
    row = next(each for each in table["rows"] if each["batch_size"] == 8)
    cells = {cell["config"]: cell for cell in row["configs"]}
    assert cells[str(LONG)]["step_s"] < 0.03


def test_a_catch_up_must_pay_for_itself():
    """The drafter is a little better than plain: worth it with a small gap, not with a huge one."""
    costly = profile(
        stages={**profile().stages, "extend": grid(lambda w, b, c: 1e-3 * w, (1.0, 512.0))}
    )
    gaps = {}
    for gap in (0, 8 * 400_000):
        planner = Planner(costly, (CHAIN,))
        serve(planner, FIRST_ROUNDS, 0.45)
        gaps[gap] = mostly(serve(planner, 60, 0.45, gap=gap))
    assert gaps == {0: CHAIN, 8 * 400_000: PLAIN}


def test_a_push_while_plain_asks_for_guesses_and_comes_back():
    planner = Planner(profile(), CONFIGS)
    serve(planner, 1500, 0.05)
    assert not any(plan.probe_tokens for plan in serve(planner, 10, 0.05))
    planner.on_drafter_push()
    plans = serve(planner, 200, 0.95)
    asked = next(i for i, plan in enumerate(plans) if plan.probe_tokens or plan.config != PLAIN)
    assert asked < 8
    assert mostly(plans[-50:]) == LONG


def test_nothing_changes_where_nothing_changes():
    planner = Planner(profile(), CONFIGS)
    serve(planner, 2000, 0.8)
    configs = [plan.config for plan in serve(planner, 1000, 0.8)]
    changes = sum(a != b for a, b in pairwise(configs))
    assert changes <= 20


def test_ranks_decide_alike():
    """Two planners, fed alike, decide alike: also with noisy times, mixed classes and a push."""
    rng = random.Random(0)
    pair = [Planner(profile(), CONFIGS) for _ in range(2)]
    for turn in range(600):
        given = stats(rng.randint(1, 90), rng.uniform(10, 5000), rng.randint(0, 900), turn % 3)
        plans = [planner.decide(given) for planner in pair]
        assert plans[0] == plans[1]
        config = plans[0].config
        hits = tuple(rng.randint(0, 5) for _ in range(config.topk))
        ranks = [RankCounts(turn % 3, 1, True, hits, rng.randint(0, 9))]
        step = record(
            config, given.batch_size, given.mean_context_tokens, ranks,
            seconds=rng.choice([None, rng.uniform(0.005, 0.2)]),
            tokens=given.batch_size + rng.randint(0, 9), which=turn % 3,
        )  # fmt: skip
        for planner in pair:
            planner.record(step)
        if turn == 300:
            for planner in pair:
                planner.on_drafter_push()
    assert pair[0].table() == pair[1].table()


def test_the_table_is_plain_json_and_complete():
    planner = Planner(profile(), CONFIGS)
    serve(planner, 50, 0.8, batch=5)
    table = json.loads(json.dumps(planner.table()))
    assert table["batch_size"] == 5
    assert table["current"] in {str(each) for each in (PLAIN, *CONFIGS)}
    assert table["reason_meaning"] == PLAN_REASONS[table["reason"]]
    assert [row["batch_size"] for row in table["rows"]] == [1, 5, 16, 64]
    for row in table["rows"]:
        assert [cell["config"] for cell in row["configs"]] == [
            str(each) for each in (PLAIN, *CONFIGS)
        ]
        best = max(row["configs"], key=lambda cell: cell["tokens_per_s"])
        assert row["best"] == best["config"]
        for cell in row["configs"]:
            speed = row["batch_size"] * cell["expected_accepted"] / cell["step_s"]
            assert cell["tokens_per_s"] == pytest.approx(speed)


def test_too_many_configurations_are_refused():
    many = [SpeculationConfig(steps, 1, steps + 1) for steps in range(1, MAX_CONFIGS + 2)]
    with pytest.raises(RespecError, match="8 configurations"):
        Planner(profile(), many)


@pytest.mark.parametrize("text", ["plain", " plain ", "always:0,1,1"])
def test_plain_by_name(text):
    assert make_policy(text, None, CONFIGS).decide(stats()).config == PLAIN


@pytest.mark.parametrize("text", ["always:3,1,4", "always:(3,1,4)"])
def test_always_by_name(text):
    policy = make_policy(text, None, CONFIGS)
    assert isinstance(policy, Always)
    assert policy.decide(stats()).config == CHAIN
    assert policy.table()["current"] == "3,1,4"


def test_auto_by_name():
    assert isinstance(make_policy("auto", profile(), CONFIGS), Planner)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("auto", "respec profile"),
        ("always:2,1,3", "3,1,4"),
        ("always:", "steps,topk,draft_tokens"),
        ("best", "sglang-adaptive"),
        ("plain:3", "sglang-adaptive"),
        ("", "sglang-adaptive"),
    ],
)
def test_what_is_no_policy_says_what_is(text, word):
    with pytest.raises(RespecError, match=word):
        make_policy(text, None, CONFIGS)


def test_fuzz_visits_all_and_repeats_by_seed():
    plans = {seed: [Fuzz(CONFIGS, seed).decide(stats())] for seed in (1, 2)}
    policies = [Fuzz(CONFIGS, 1), Fuzz(CONFIGS, 1), Fuzz(CONFIGS, 2)]
    plans = [[policy.decide(stats()) for _ in range(500)] for policy in policies]
    assert plans[0] == plans[1] != plans[2]
    configs = [plan.config for plan in plans[0]]
    assert set(configs) == {PLAIN, *CONFIGS}
    changes = sum(a != b for a, b in pairwise(configs))
    assert 80 < changes < 170  # a third of 500 draws, a fourth of which draws the same
    assert any(plan.probe_tokens for plan in plans[0])
    assert not any(plan.probe_tokens for plan in plans[0] if not plan.config.is_plain)
    with pytest.raises(RespecError):
        Fuzz(CONFIGS, mean_rounds=0.5)


@pytest.mark.parametrize("first_batch", [1, 4, 64])
@pytest.mark.parametrize("probability", [0.9, 0.95, 0.99])
def test_a_probe_ends_when_its_question_is_answered(first_batch, probability):
    """Begun with one request, where a look takes many rounds, and answered by a full batch: the
    other configurations must not wait for the rounds that are left."""
    table = load_profile("cpu_demo_pair")
    configs = [SpeculationConfig(*each) for each in ((5, 4, 16), (5, 1, 6), (3, 1, 4), (1, 1, 2))]
    planner = Planner(table, configs)
    serve(planner, 12, probability, batch=first_batch)
    plans = serve(planner, 100, probability, batch=64)
    in_a_row = [len(list(group)) for probing, group in groupby(plans, _probes) if probing]
    assert max(in_a_row, default=0) <= 16
    speeds = {
        config: sum(probability**d for d in range(config.num_steps + 1))
        / table.round_seconds(config, 64, 1000.0)
        for config in (PLAIN, *configs)
    }
    assert speeds[mostly(plans[-50:])] > 0.97 * max(speeds.values())


def test_a_probe_does_not_outgrow_its_rounds_while_the_batch_shrinks():
    """Begun for so many requests at 64 of them, it would take 64 times its rounds at one."""
    planner = Planner(profile(), CONFIGS)
    while not _probes(planner.decide(stats(64))):
        planner.record(record(batch=64, seconds=None))
    looks, rounds = planner._probe_looks, 0
    while _probes(planner.decide(stats(1))):
        rounds += 1
    assert looks / 64 >= 3
    assert rounds <= PROBE_STRETCH * looks / 64


def _probes(plan):
    return plan.reason == "probe"
