"""The buffer: who stays, who goes, who judges, and that drawing and adding may go on at once."""

import random
import threading

import pytest
from learner_toys import markov_rollout

from sglang_respec.learner.replay import ReplayBuffer, ReplayLimits
from sglang_respec.learner.rewards import Reward, Rewarded
from sglang_respec.learner.sample_weights import weight_rule

LIMITS = ReplayLimits(
    train_tokens=300, held_out_tokens=90, max_policy_age=2, max_age_s=100.0, held_out_share=4
)


def add(buffer: ReplayBuffer, *numbers: int, now: float = 0.0, policy: int = 0) -> None:
    rollouts = [markov_rollout(n, policy_version=policy) for n in numbers]
    buffer.add([Rewarded(each, None) for each in rollouts], now)


def ids(buffer: ReplayBuffer) -> set[str]:
    return {part.sample.request_id for part in draw(buffer)}


def draw(buffer: ReplayBuffer, batch_tokens: int = 1 << 20, rule: str = "none", seed: int = 0):
    return buffer.draw(
        random.Random(seed), batch_tokens=batch_tokens, window=64, rule=weight_rule(rule), clip=9.0
    )


def test_no_prompt_is_on_both_sides() -> None:
    buffer = ReplayBuffer(ReplayLimits(10**6, 10**6, 9, 1e9, 4))
    for prompt in range(20):
        same = [markov_rollout(100 * prompt + i, prompt_seed=prompt) for i in range(3)]
        buffer.add([Rewarded(each, None) for each in same], 0.0)
    train = {bytes(p.sample.tokens[:5].numpy()) for p in draw(buffer)}
    judge = {bytes(s.tokens[:5].numpy()) for s in buffer.held_out()}
    assert train
    assert judge
    assert not train & judge
    assert len(train) + len(judge) == 20
    assert len(draw(buffer)) + len(buffer.held_out()) == 60


def test_the_oldest_go_when_room_is_short() -> None:
    buffer = ReplayBuffer(LIMITS)
    for number in range(60):
        add(buffer, number)
    counters = buffer.counters()
    assert counters["train_tokens"] <= 300
    assert counters["held_out_tokens"] <= 90
    dropped = counters["dropped_by_room"]
    assert dropped == 60 - counters["train_rollouts"] - counters["held_out_rollouts"]
    trained = [n for n in range(60) if not buffer.is_held_out(markov_rollout(n))]
    assert ids(buffer) == {f"r{n}" for n in trained[-10:]}


def test_old_policies_and_old_rollouts_go() -> None:
    buffer = ReplayBuffer(LIMITS)
    train = [n for n in range(30) if not buffer.is_held_out(markov_rollout(n))][:6]
    add(buffer, train[0], policy=0)
    add(buffer, train[1], policy=1, now=50.0)
    add(buffer, train[2], policy=3, now=60.0)
    assert ids(buffer) == {f"r{train[1]}", f"r{train[2]}"}
    assert buffer.counters()["dropped_by_policy"] == 1
    buffer.drop_old(155.0)
    assert ids(buffer) == {f"r{train[2]}"}
    assert buffer.counters()["dropped_by_clock"] == 1


def test_a_batch_keeps_to_its_tokens() -> None:
    buffer = ReplayBuffer(LIMITS)
    for number in range(60):
        add(buffer, number)
    assert len(draw(buffer, batch_tokens=100)) == 3  # of 30 tokens each
    assert len(draw(buffer, batch_tokens=1)) == 1
    assert draw(buffer, 100, seed=1) != draw(buffer, 100, seed=2)
    assert draw(buffer, 100, seed=1) == draw(buffer, 100, seed=1)
    assert draw(ReplayBuffer(LIMITS)) == []


def test_a_late_reward_reaches_a_rollout_in_the_buffer() -> None:
    buffer = ReplayBuffer(LIMITS)
    train = [n for n in range(30) if not buffer.is_held_out(markov_rollout(n))][:2]
    add(buffer, *train)
    assert {part.weight for part in draw(buffer, rule="reward")} == {1.0}
    buffer.reward([Reward(f"r{train[0]}", 1.0), Reward(f"r{train[1]}", 0.0), Reward("gone", 9.0)])
    weights = {part.sample.request_id: part.weight for part in draw(buffer, rule="reward")}
    assert weights == {f"r{train[0]}": 2.0, f"r{train[1]}": 0.0}
    assert buffer.counters()["rewarded_late"] == 2


@pytest.mark.parametrize("threads", [4])
def test_adding_and_drawing_at_once(threads: int) -> None:
    buffer = ReplayBuffer(LIMITS)
    rollouts = [[markov_rollout(1000 * t + i) for i in range(20)] for t in range(threads)]
    failed: list[BaseException] = []

    def work(mine: list) -> None:
        try:
            for each in mine:
                buffer.add([Rewarded(each, None)], 0.0)
                draw(buffer, 90)
                buffer.reward([Reward(each.request_id, 1.0)])
                buffer.held_out()
        except RuntimeError as error:  # what a dict says that changed under an iteration
            failed.append(error)

    workers = [threading.Thread(target=work, args=(mine,)) for mine in rollouts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed
    counters = buffer.counters()
    kept = counters["train_rollouts"] + counters["held_out_rollouts"]
    assert kept + counters["dropped_by_room"] == 20 * threads
