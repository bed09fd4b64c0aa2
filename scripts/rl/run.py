"""One arm with one seed: rollouts, rewards, update, synchronisation, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demo.data import prompt_ids
from rollouts import Batch, generate
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from respec_server.bundled import demo_models
from rl.grpo import Answer, GrpoSettings, Policy, advantages
from rl.processes import Rig
from rl.records import Arm, ArmRun, Settings, StepRecord, tokens_digest
from rl.task import Score, Task, score
from sglang_respec.demo_task import Problem, make_problem

WARM_UP_REQUESTS = 4
WARM_UP_TOKENS = 16

OnStep = Callable[[StepRecord], None]


def run_arm(
    arm: Arm, seed: int, settings: Settings, folder: Path, facts: dict[str, Any], on_step: OnStep
) -> ArmRun:
    """Start the arm's processes, take every step, stop them.

    The trainer computes on one thread, so that equal rollouts give equal weights.
    """
    torch.set_num_threads(1)
    policy = Policy(
        demo_models()[0], GrpoSettings(settings.learning_rate, settings.epochs, settings.clip)
    )
    task = Task(seed, settings.prompts, settings.samples, settings.max_steps)
    with Rig(arm, settings, folder) as rig:
        loop = Loop(rig, policy, task, settings)
        loop.warm_up()
        started = time.monotonic()
        steps = []
        for step in range(settings.steps):
            steps.append(loop.step(step))
            on_step(steps[-1])
        seconds = time.monotonic() - started
    return ArmRun(arm.name, seed, settings, facts, seconds, steps)


@dataclass(frozen=True)
class Sampled:
    """One step's rollouts, in order: the samples of one prompt beside each other."""

    problems: list[Problem]
    prompts: list[list[int]]
    batch: Batch


class Loop:
    """GRPO with a server for rollouts."""

    def __init__(self, rig: Rig, policy: Policy, task: Task, settings: Settings) -> None:
        self._rig, self._policy, self._task, self._settings = rig, policy, task, settings
        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(demo_models()[0])
        self._learner_cpu_s = 0.0

    def warm_up(self) -> None:
        """The first requests of a server take longer than all others."""
        problems = [make_problem(number) for number in range(WARM_UP_REQUESTS)]
        sampling = {"temperature": 1.0, "max_new_tokens": WARM_UP_TOKENS, "sampling_seed": 0}
        prompts = prompt_ids(self._tokenizer, problems)
        generate(self._rig.url, prompts, sampling, concurrency=WARM_UP_REQUESTS)
        self._learner_cpu_s = self._rig.learner_cpu_s()

    def step(self, step: int) -> StepRecord:
        sampled = self._sample(step)
        version = self._rig.drafter_version()
        scores = self._score(sampled)
        gains = advantages([each.reward for each in scores], self._settings.samples)
        self._report(step, scores, gains)
        began = time.monotonic()
        grad_norm = self._policy.update(_answers(sampled, gains))
        trained = time.monotonic()
        self._synchronise(step)
        synchronised = time.monotonic()
        return self._record(
            step, sampled.batch, scores, grad_norm, version, trained - began,
            synchronised - trained,
        )  # fmt: skip

    def _sample(self, step: int) -> Sampled:
        settings, task = self._settings, self._task
        problems = task.problems(step)
        per_prompt = prompt_ids(self._tokenizer, problems)
        prompts = [ids for ids in per_prompt for _ in range(settings.samples)]
        numbers = range(settings.rollouts)
        sampling = [
            {
                "temperature": 1.0, "max_new_tokens": settings.max_new_tokens,
                "sampling_seed": task.sampling_seed(step, number),
            }
            for number in numbers
        ]  # fmt: skip
        names = [{"rid": task.request_id(step, number)} for number in numbers]
        batch = generate(
            self._rig.url, prompts, sampling, concurrency=settings.concurrency, extra=names
        )
        return Sampled(problems, prompts, batch)

    def _score(self, sampled: Sampled) -> list[Score]:
        return [
            score(sampled.problems[number // self._settings.samples], rollout.text)
            for number, rollout in enumerate(sampled.batch.rollouts)
        ]

    def _report(self, step: int, scores: list[Score], gains: list[float]) -> None:
        """Rewards and our own advantages, by request id."""
        self._rig.post_rewards(
            [
                {
                    "request_id": self._task.request_id(step, number), "reward": each.reward,
                    "advantage": gain, "group": self._task.group(step, number),
                }
                for number, (each, gain) in enumerate(zip(scores, gains, strict=True))
            ]
        )  # fmt: skip

    def _synchronise(self, step: int) -> None:
        self._policy.save(self._rig.checkpoint / "model.safetensors")
        self._rig.push_policy(f"step-{step + 1}")

    def _record(
        self,
        step: int,
        batch: Batch,
        scores: list[Score],
        grad_norm: float,
        version: int | None,
        train_s: float,
        sync_s: float,
    ) -> StepRecord:
        cpu_s, before = self._rig.learner_cpu_s(), self._learner_cpu_s
        self._learner_cpu_s = cpu_s
        status = self._rig.learner_status()
        speculated = [each for each in batch.rollouts if each.verifies]
        count = len(scores)
        return StepRecord(
            step=step,
            reward=sum(each.reward for each in scores) / count,
            right=sum(each.right for each in scores) / count,
            style=sum(each.style for each in scores) / count,
            tokens=batch.tokens,
            # The first token of a request comes from its prefill.
            committed=sum(len(each.output_ids) - 1 for each in speculated),
            verifies=sum(each.verifies for each in speculated),
            digest=tokens_digest(batch.token_lists),
            grad_norm=grad_norm,
            drafter_version=version,
            learner_updates=int(status["updates"]) if status else None,
            rollout_s=batch.seconds,
            train_s=train_s,
            sync_s=sync_s,
            learner_cpu_s=cpu_s - before,
        )


def _answers(sampled: Sampled, gains: list[float]) -> list[Answer]:
    rollouts = sampled.batch.rollouts
    return [
        Answer(tuple(prompt), rollout.output_ids, gain)
        for prompt, rollout, gain in zip(sampled.prompts, rollouts, gains, strict=True)
    ]
