"""A worse drafter is told from what the target accepts, and from nothing else."""

from __future__ import annotations

import random

import pytest

from sglang_respec.drafter.guard import SETTLING_STEPS, Guard, GuardPolicy
from sglang_respec.drafter.versions import DrafterVersion, History, NotKept

POLICY = GuardPolicy(verifies=100, ratio=0.7)


def run(guard: Guard, mean: float, steps: int, requests: int = 4) -> list[str]:
    """Verify steps with this many accepted drafts per request; returns the verdicts that fell."""
    drafts = round(mean * requests)
    return [v for _ in range(steps) if (v := guard.record(drafts, requests)) is not None]


def judged(old: float, new: float) -> list[str]:
    guard = Guard(POLICY, 0)
    run(guard, old, 50)
    guard.swapped(old=0, policy=None)
    assert guard.verdict == "watching"
    return run(guard, new, 50)


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [(3.0, 3.0, "kept"), (3.0, 2.25, "kept"), (3.0, 2.0, "worse"), (3.0, 0.0, "worse"),
     (1.0, 5.0, "kept"), (0.0, 0.0, "kept"), (0.0, 1.0, "kept")],
)  # fmt: skip
def test_verdicts(old, new, verdict):
    assert judged(old, new) == [verdict]


def test_the_verdict_falls_after_so_many_verifies_and_once():
    guard = Guard(POLICY, 0)
    run(guard, 3, 50)
    guard.swapped(old=0, policy=None)
    assert run(guard, 0, SETTLING_STEPS + 24) == []
    assert run(guard, 0, 1) == ["worse"]
    assert run(guard, 0, 100) == []


def test_steps_right_after_the_swap_do_not_count():
    guard = Guard(POLICY, 0)
    run(guard, 3, 50)
    guard.swapped(old=0, policy=None)
    run(guard, 1000, SETTLING_STEPS)
    assert run(guard, 1, 50) == ["worse"]


def test_another_shape_of_speculation_is_no_worse_drafter():
    guard = Guard(POLICY, 0)
    for _ in range(12):
        guard.record(4 * 4, 4, "5,1,6")
        guard.record(4 * 2, 4, "3,1,4")
    guard.swapped(old=0, policy=None)
    short = [guard.record(4 * 2, 4, "3,1,4") for _ in range(SETTLING_STEPS + 25)]
    assert [each for each in short if each] == ["kept"], "two of three drafts are what it had"


def test_a_shape_that_the_baseline_never_saw_says_nothing():
    guard = Guard(POLICY, 0)
    run(guard, 4, 50)
    guard.swapped(old=0, policy=None)
    assert not any(guard.record(0, 4, "2,1,3") for _ in range(50))
    assert guard.verdict == "watching"
    assert run(guard, 1, 40) == ["worse"]


def test_without_a_baseline_nothing_is_judged():
    guard = Guard(POLICY, 0)
    run(guard, 3, 6)
    guard.swapped(old=0, policy=None)
    assert guard.verdict == "no baseline"
    assert run(guard, 0, 100) == []


def test_the_baseline_is_of_the_last_verifies_only():
    guard = Guard(POLICY, 0)
    run(guard, 5, 1000)
    run(guard, 1, 25)
    guard.swapped(old=0, policy=None)
    assert guard.to_dict()["baseline_accepted_length"] == 2.0
    assert run(guard, 1, 50) == ["kept"]


def test_an_unjudged_drafter_is_no_standard():
    guard = Guard(POLICY, 0)
    run(guard, 3, 50)
    guard.swapped(old=0, policy=None)
    run(guard, 0, 5)
    guard.swapped(old=1, policy=None)  # a second push, before the verdict on the first
    assert guard.fallback == 0
    assert run(guard, 1, 50) == ["worse"]


def test_a_push_brings_its_own_policy_or_none():
    guard = Guard(POLICY, 0)
    run(guard, 3, 50)
    guard.swapped(old=0, policy=GuardPolicy(8, 0.1))
    assert run(guard, 1, 4) == ["kept"]
    run(guard, 3, 50)
    guard.swapped(old=1, policy=GuardPolicy(0, 0.7))
    assert guard.verdict == "off"
    assert run(guard, 0, 100) == []


def test_after_a_rollback_the_old_baseline_stands_again():
    guard = Guard(POLICY, 0)
    run(guard, 3, 50)
    guard.swapped(old=0, policy=None)
    assert run(guard, 0, 50) == ["worse"]
    guard.restored(2)
    guard.swapped(old=2, policy=None)  # at once, with no verify in between
    assert (guard.verdict, guard.fallback) == ("watching", 2)
    assert run(guard, 0, 50) == ["worse"]


def test_noise_of_an_equal_drafter_is_not_worse():
    """2,048 verifies of means near 3 differ by a few percent; the ratio of 0.7 is far outside."""
    rng = random.Random(0)
    guard = Guard(GuardPolicy(2048, 0.7), 0)
    for swap in range(200):
        for _ in range(300):
            guard.record(sum(rng.choice((0, 1, 2, 3, 5, 5)) for _ in range(8)), 8)
        assert guard.verdict in ("off", "kept")
        guard.swapped(old=swap, policy=None)


def version(number: int, restores: int | None = None) -> DrafterVersion:
    return DrafterVersion(number, "", "", "push", 0.0, restores)


def test_history_keeps_the_newest_weights_and_every_recent_name():
    history: History[str] = History(version(0), keep=2)
    history.hold(0, "w0")
    for number in range(1, 100):
        history.add(version(number), f"w{number}")
    assert history.weights_of(98) == "w98"
    with pytest.raises(NotKept, match="kept: 98, 99"):
        history.weights_of(97)
    assert len(history.to_list()) == 64


def test_a_rollback_of_a_rollback():
    history: History[str] = History(version(0), keep=3)
    history.hold(0, "w0")
    history.add(version(1), "w1")
    history.add(version(2, restores=0), "w0")
    assert history.before_serving() == 1
    assert history.weights_of(2) == "w0"
    history.add(version(3, restores=1), "w1")
    assert history.before_serving() == 0


def test_there_is_nothing_before_the_start():
    with pytest.raises(NotKept, match="no earlier"):
        History(version(0), keep=2).before_serving()
