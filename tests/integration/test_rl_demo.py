"""The loop of the demo with real servers: equal rollouts in every arm, and policies that move."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from rl.grpo import GrpoSettings, Policy
from rl.processes import Rig
from rl.records import ARMS, Settings, StepRecord
from rl.run import Loop
from rl.task import Task
from serving import Servers

from respec_server.bundled import demo_models

pytestmark = pytest.mark.server

SETTINGS = Settings(
    steps=2, prompts=3, samples=4, max_steps=3, max_new_tokens=64, concurrency=12,
    learning_rate=1e-3, epochs=2, clip=0.2,
    learner={
        "least-tokens": "256", "batch-tokens": "512", "warmup-steps": "1", "reuse": "2",
        "reward-window-s": "300",
    },
)  # fmt: skip
LEARNED_WITHIN_S = 120.0
PROBE = [1, *range(60, 90)]


@dataclass(frozen=True)
class Outcome:
    records: list[StepRecord]
    served: torch.Tensor  # [T - 1] log-probabilities of the probe, by the server at the end
    trained: torch.Tensor  # the same by the trainer
    version: str
    learner: dict[str, Any] | None  # its status, when it had every reward


@pytest.fixture(scope="module")
def outcomes(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("rl")
    return {arm: run(arm, servers, folder / arm) for arm in ("plain", "frozen", "learner-reward")}


def run(arm: str, servers: Servers, folder: Path) -> Outcome:
    policy = Policy(demo_models()[0], GrpoSettings(SETTINGS.learning_rate))
    task = Task(0, SETTINGS.prompts, SETTINGS.samples, SETTINGS.max_steps)
    with Rig(ARMS[arm], SETTINGS, folder, servers.command("respec")) as rig:
        loop = Loop(rig, policy, task, SETTINGS)
        loop.warm_up()
        records = [loop.step(step) for step in range(SETTINGS.steps)]
        info = httpx.get(f"{rig.url}/model_info", trust_env=False).json()
        learner = learned(rig)
        served = served_logprobs(rig.url)
    return Outcome(records, served, logprobs(policy), info["weight_version"], learner)


def learned(rig: Rig) -> dict[str, Any] | None:
    """The learner's status once it has paired every rollout with its reward, and learned."""
    rollouts = SETTINGS.steps * SETTINGS.rollouts
    deadline = time.monotonic() + LEARNED_WITHIN_S
    while (status := rig.learner_status()) is not None and time.monotonic() < deadline:
        # A rollout is in the buffer a moment after it was matched.
        arrived = status["buffer"]["train_rollouts"] + status["buffer"]["held_out_rollouts"]
        matched = status["rewards"].get("matched", 0)
        if min(arrived, matched) >= rollouts and status["updates"]:
            break
        time.sleep(0.5)
    return status


def served_logprobs(url: str) -> torch.Tensor:
    body = {
        "input_ids": PROBE, "return_logprob": True, "logprob_start_len": 0,
        "sampling_params": {"temperature": 1.0, "max_new_tokens": 1},
    }  # fmt: skip
    answer = httpx.post(f"{url}/generate", json=body, timeout=60, trust_env=False).json()
    return torch.tensor([entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]])


@torch.no_grad()
def logprobs(policy: Policy) -> torch.Tensor:
    tokens = torch.tensor(PROBE)
    table = policy.model(input_ids=tokens[None]).logits[0].log_softmax(-1)
    return table[:-1].gather(1, tokens[1:, None])[:, 0]


@pytest.mark.parametrize("arm", ["frozen", "learner-reward"])
def test_plain_and_speculative_arms_draw_the_same_tokens(
    outcomes: dict[str, Outcome], arm: str
) -> None:
    plain, other = outcomes["plain"].records, outcomes[arm].records
    assert [each.digest for each in plain] == [each.digest for each in other]
    assert [each.reward for each in plain] == [each.reward for each in other]
    assert [each.grad_norm for each in plain] == [each.grad_norm for each in other]
    assert all(each.grad_norm > 0 for each in plain)


def test_the_learner_gets_every_rollout_with_its_reward(outcomes: dict[str, Outcome]) -> None:
    status = outcomes["learner-reward"].learner
    assert status is not None
    assert status["rewards"]["matched"] == SETTINGS.steps * SETTINGS.rollouts
    assert status["updates"] > 0
    assert status["buffer"]["policy_version"] == SETTINGS.steps - 1  # of the last rollouts
    assert outcomes["frozen"].learner is None


def test_only_the_speculative_arm_verifies(outcomes: dict[str, Outcome]) -> None:
    """A push that reached the drafter would leave it with nothing accepted at the second step."""
    assert all(each.accepted_length is None for each in outcomes["plain"].records)
    assert all((each.accepted_length or 0) > 3 for each in outcomes["frozen"].records)
    assert {each.drafter_version for each in outcomes["frozen"].records} == {0}


@pytest.mark.parametrize("arm", ["plain", "frozen"])
def test_the_server_ends_with_the_policy_that_was_trained(
    outcomes: dict[str, Outcome], arm: str
) -> None:
    outcome = outcomes[arm]
    untrained = logprobs(Policy(demo_models()[0], GrpoSettings()))
    assert outcome.version == f"step-{SETTINGS.steps}"
    # Two implementations of one float32 model: rounding alone.
    torch.testing.assert_close(outcome.served, outcome.trained, atol=1e-3, rtol=0)
    assert (outcome.trained - untrained).abs().max() > 0.05
