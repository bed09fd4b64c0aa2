"""Rewards and rollouts in every order, and the weights made of them."""

import math

import pytest
import torch
from learner_toys import markov_rollout

from sglang_respec.errors import RespecError
from sglang_respec.learner.rewards import MAX_EARLY, Reward, RewardBook
from sglang_respec.learner.sample_weights import Facts, advantages, weight_rule

A, B = markov_rollout(1), markov_rollout(2)


def released(book: RewardBook, now: float) -> list[tuple[str, float | None]]:
    return [
        (each.sample.request_id, each.reward.reward if each.reward else None)
        for each in book.release(now)
    ]


def test_the_reward_may_come_first_or_last() -> None:
    book = RewardBook(10.0, "one")
    book.post([Reward("r1", 1.0)], 0.0)
    book.add([A, B], 1.0)
    assert released(book, 1.0) == [("r1", 1.0)]
    book.post([Reward("r2", 0.5)], 2.0)
    assert released(book, 2.0) == [("r2", 0.5)]
    assert book.counters()["matched"] == 2


@pytest.mark.parametrize(("missing", "expected"), [("one", [("r1", None)]), ("drop", [])])
def test_a_missing_reward_ends_the_wait(missing: str, expected: list) -> None:
    book = RewardBook(10.0, missing)
    book.add([A], 0.0)
    assert released(book, 9.9) == []
    assert released(book, 10.0) == expected
    assert released(book, 11.0) == []
    assert book.counters()["missing"] == 1


def test_without_a_window_nothing_waits() -> None:
    book = RewardBook(0.0, "one")
    book.add([A], 5.0)
    assert released(book, 5.0) == [("r1", None)]


def test_a_repeated_reward_is_ignored_and_a_changed_one_counts() -> None:
    book = RewardBook(10.0, "one")
    book.post([Reward("r1", 1.0), Reward("r1", 1.0)], 0.0)
    assert book.counters()["repeated"] == 1
    book.post([Reward("r1", 2.0)], 0.0)
    book.add([A], 0.0)
    assert released(book, 0.0) == [("r1", 2.0)]
    book.post([Reward("r1", 2.0)], 1.0)
    assert book.take_late() == []
    assert book.counters()["repeated"] == 2


def test_a_late_reward_is_handed_on_once() -> None:
    book = RewardBook(1.0, "one")
    book.add([A], 0.0)
    assert released(book, 2.0) == [("r1", None)]
    book.post([Reward("r1", 3.0)], 50.0)
    assert [each.reward for each in book.take_late()] == [3.0]
    assert book.take_late() == []
    assert book.counters()["late"] == 1


def test_a_reward_without_a_rollout_expires() -> None:
    book = RewardBook(5.0, "one")
    book.post([Reward("nobody", 1.0)], 0.0)
    book.release(4.0)
    assert book.counters()["early"] == 1
    book.release(5.0)
    assert (book.counters()["early"], book.counters()["expired"]) == (0, 1)


def test_early_rewards_are_bounded() -> None:
    book = RewardBook(1e9, "one")
    book.post([Reward(f"x{i}", 0.0) for i in range(MAX_EARLY + 3)], 0.0)
    assert (book.counters()["early"], book.counters()["expired"]) == (MAX_EARLY, 3)


def test_a_rollout_that_comes_twice_is_used_once() -> None:
    book = RewardBook(10.0, "one")
    book.add([A, A], 0.0)
    book.post([Reward("r1", 1.0)], 0.0)
    assert released(book, 0.0) == [("r1", 1.0)]
    book.add([A], 1.0)
    assert released(book, 99.0) == []
    assert book.counters()["repeated_rollouts"] == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_is_a_number(bad: float) -> None:
    with pytest.raises(RespecError, match="not finite"):
        Reward("r1", bad)
    with pytest.raises(RespecError, match="not finite"):
        Reward("r1", 1.0, advantage=bad)


def facts(*rewards: float | None, tokens: int = 10) -> list[Facts]:
    return [Facts(tokens, None if r is None else Reward(f"{i}", r)) for i, r in enumerate(rewards)]


def weigh(name: str, given: list[Facts], clip: float = 100.0) -> list[float]:
    return weight_rule(name)(given, clip).tolist()


def test_no_weighting_is_one() -> None:
    assert weigh("none", facts(1.0, None, -3.0)) == [1, 1, 1]


def test_rewards_are_shifted_divided_by_their_mean_and_clipped() -> None:
    # u = 0, 1, 3, mean 4/3
    assert weigh("reward", facts(-1.0, 0.0, 2.0)) == pytest.approx([0, 0.75, 2.25])
    assert weigh("reward", facts(-1.0, 0.0, 2.0), clip=2.0) == pytest.approx([0, 0.75, 2])
    assert weigh("reward", facts(1.0, None, 0.0)) == pytest.approx([2, 1, 0])


def test_rewards_that_tell_nothing_apart_weigh_one() -> None:
    for name in ("reward", "advantage"):
        assert weigh(name, facts(0.5, 0.5)) == [1, 1]
        assert weigh(name, facts(None, None)) == [1, 1]
        assert weigh(name, []) == []


def test_advantages_are_standardised_within_their_group() -> None:
    given = [
        Facts(1, Reward("a", 1.0, group="x")), Facts(1, Reward("b", 0.0, group="x")),
        Facts(1, Reward("c", 5.0, group="y")), Facts(1, Reward("d", 0.0, advantage=-3.0)),
        Facts(1, None),
    ]  # fmt: skip
    expected = [0.5 / 0.5001, -0.5 / 0.5001, 0.0, -3.0]
    assert advantages(given) == [*map(pytest.approx, expected), None]
    mean = sum(map(abs, expected)) / 4
    assert weigh("advantage", given) == pytest.approx([*(abs(a) / mean for a in expected), 1.0])


def test_length_needs_no_reward() -> None:
    given = [Facts(10, None), Facts(30, None)]
    assert weigh("length", given) == [0.5, 1.5]


def test_an_unknown_weighting_names_the_known_ones() -> None:
    with pytest.raises(RespecError, match="did you mean 'reward'"):
        weight_rule("rewards")


def test_weights_are_float64() -> None:
    assert weight_rule("reward")(facts(0.0, 1.0), 2.0).dtype == torch.float64
