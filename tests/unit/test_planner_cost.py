"""Step times: the profile's between its knots, and what measured steps make of them."""

from __future__ import annotations

import math
import random

import pytest
from planner_cases import CHAIN, CONTEXTS, SIZES, TREE, grid, profile

from sglang_respec.core import PLAIN
from sglang_respec.planner.cost import CostModel
from sglang_respec.planner.profile import HeldOut

CONFIGS = (PLAIN, CHAIN, TREE)


@pytest.mark.parametrize("batch", [1, 3, 16, 40, 64, 200])
@pytest.mark.parametrize("context", [1, 128, 777, 4096, 20_000])
def test_the_layout_gives_the_profile_back(batch, context):
    made = profile(rounds={TREE: grid(lambda w, b, c: 1e-3 * b, sizes=(1.0, 7.0, 64.0))})
    model = CostModel(made, CONFIGS)
    place = model.place(batch, context)
    for index, config in enumerate(CONFIGS):
        expected = made.round_seconds(config, batch, context)
        # sums of linear pieces on the union of their knots: equal but for rounding
        assert model.profiled(index, place) == pytest.approx(expected, rel=1e-9)


def learn(model, index, factor, steps, batch=16, noise=0.0, seed=0):
    rng = random.Random(seed)
    place = model.place(batch, 1000)
    for _ in range(steps):
        seconds = model.profiled(index, place) * factor * math.exp(rng.gauss(0.0, noise))
        model.record(index, place, seconds)
    return place


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 3.0])
def test_a_machine_of_another_speed_is_learned(factor):
    model = CostModel(profile(), CONFIGS)
    place = learn(model, 1, factor, 100, noise=0.05)
    # 100 steps of 5 % scatter: half a percent, times three, and what the slow end still owes
    assert model.seconds(1, place) == pytest.approx(factor * model.profiled(1, place), rel=0.03)


def test_a_speed_that_all_share_changes_no_comparison():
    model = CostModel(profile(), CONFIGS)
    for _ in range(20):
        for index in range(len(CONFIGS)):
            place = learn(model, index, 1.5, 1)
    ratio = model.relative(1, place) / model.relative(0, place)
    assert ratio == pytest.approx(model.profiled(1, place) / model.profiled(0, place), rel=0.01)
    assert model.seconds(2, place) == pytest.approx(1.5 * model.profiled(2, place), rel=0.02)


def test_one_configuration_off_is_told_from_all_off():
    model = CostModel(profile(), CONFIGS)
    for _ in range(60):
        for index, factor in enumerate((1.0, 1.25, 1.0)):
            place = learn(model, index, factor, 1)
    ratio = model.relative(1, place) / model.relative(0, place)
    truth = 1.25 * model.profiled(1, place) / model.profiled(0, place)
    assert ratio == pytest.approx(truth, rel=0.02)
    far = model.place(200, 1000)  # another bucket: the configuration's own share goes along
    assert model.relative(1, far) > 1.1 * model.profiled(1, far)


def test_measuring_makes_surer_and_a_probe_says_by_how_much():
    model = CostModel(profile(), CONFIGS)
    place = model.place(16, 1000)
    unsure = model.relative_error(1, place)
    assert model.teaches(1, place, 16) > model.teaches(1, place, 1) > 0.0
    learn(model, 1, 1.0, 500, noise=0.02)
    assert model.relative_error(1, place) < unsure / 5
    assert model.relative_error(2, place) == pytest.approx(unsure)
    assert model.teaches(1, place, 16) == 0.0


def test_a_slow_step_moves_little():
    model = CostModel(profile(), CONFIGS)
    place = learn(model, 1, 1.0, 300, noise=0.02)
    before = model.seconds(1, place)
    model.record(1, place, 2.5 * before)
    # three deviations of 2 % and a bit, of which a sixth is believed
    assert before < model.seconds(1, place) <= 1.015 * before


def test_a_stall_moves_nothing_and_a_machine_that_stays_slow_is_believed():
    model = CostModel(profile(), CONFIGS)
    place = learn(model, 1, 1.0, 5, noise=0.02)
    before, error = model.seconds(1, place), model.relative_error(1, place)
    model.record(1, place, 50.0 * before)
    assert (model.seconds(1, place), model.relative_error(1, place)) == (before, error)
    model.record(1, place, 50.0 * before)
    assert model.seconds(1, place) > 1.1 * before
    learn(model, 1, 5.0, 200, noise=0.02)
    assert model.seconds(1, place) == pytest.approx(5.0 * model.profiled(1, place), rel=0.03)


def test_a_process_that_is_stopped_now_and_then_learns_all_the_same():
    """One step in seven takes thirty times as long; ten steps of each configuration are known."""
    errors = []
    for seed in range(40):
        model, rng = CostModel(profile(), CONFIGS), random.Random(seed)
        for _ in range(10):
            for index, factor in enumerate((1.0, 1.25, 1.0)):
                stop = 30.0 if rng.random() < 1 / 7 else 1.0
                place = learn(model, index, factor * stop, 1, noise=0.04, seed=rng.random())
        ratio = model.relative(1, place) / model.relative(0, place)
        truth = 1.25 * model.profiled(1, place) / model.profiled(0, place)
        errors.append(abs(math.log(ratio / truth)))
    assert sum(errors) / len(errors) < 0.05  # 0.08 if stops were believed, however little


def test_the_profiles_error_is_the_first_doubt():
    doubtful = CostModel(profile(), CONFIGS)
    assert doubtful.relative_error(1, doubtful.place(1, 1)) == pytest.approx(0.10)
    for error, doubt in ((0.0, 0.05), (0.3, 0.3)):
        seconds = profile().round_seconds(CHAIN, 8, 1000) / (1 + error)
        made = CostModel(profile(held_out=(HeldOut(CHAIN, 8, 1000, seconds),)), CONFIGS)
        assert made.relative_error(1, made.place(1, 1)) == pytest.approx(doubt)


def test_catch_up_grows_with_its_tokens():
    model = CostModel(profile(), CONFIGS)
    times = [model.profile.extend_seconds(tokens, 16, 1000) for tokens in (0, 16, 1600, 8000)]
    assert times[0] == 0.0
    assert times == sorted(set(times))


def test_knots_are_the_union():
    model = CostModel(profile(), CONFIGS)
    assert (model.batch_sizes, model.contexts) == (SIZES, CONTEXTS)
