"""What a policy is told of the batch, as requests join, leave and take each other's slots."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from sglang_respec.core import PLAIN, BatchStats, Plan, StepRecord
from sglang_respec.upstream.planning import Planning


class Listener:
    """A policy that decodes plainly and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[BatchStats] = []

    def decide(self, stats: BatchStats) -> Plan:
        self.heard.append(stats)
        return Plan(PLAIN, "rule")

    def record(self, step: StepRecord) -> None:
        pass

    def on_drafter_push(self) -> None:
        pass

    def table(self) -> dict[str, Any]:
        return {}


def batch(slots: list[int], temperatures: list[float]) -> Any:
    params = [SimpleNamespace(temperature=t or 1.0, top_k=-1 if t else 1) for t in temperatures]
    requests = [SimpleNamespace(sampling_params=each, seqlen=10) for each in params]
    return SimpleNamespace(
        reqs=requests, req_pool_indices_cpu=torch.tensor(slots), seq_lens_sum=10 * len(slots)
    )


def test_classes_follow_the_batch() -> None:
    policy = Listener()
    planning = Planning(policy, request_slots=8)

    def step(running: Any) -> None:
        planning.plan(running, gap_tokens=0)
        heard.append(planning.classes.tolist())
        planning.finished([0] * len(running.reqs))

    heard: list[list[int]] = []
    running = batch([1, 5, 2], [0.0, 1.0, 0.5])
    planning.prefilling(running)
    for _ in range(3):
        step(running)
    step(batch([5, 2], [1.0, 0.5]))  # one has left
    joined = batch([1], [0.7])  # in its slot
    planning.prefilling(joined)
    running = batch([5, 2, 1], [1.0, 0.5, 0.7])
    step(running)
    # The very same tensor of slots, with another request in one of them.
    planning.prefilling(batch([5], [0.0]))
    step(running)
    assert heard == [[0, 2, 1]] * 3 + [[2, 1], [2, 1, 1], [0, 1, 1]]
    told = [each.requests_per_class for each in policy.heard]
    assert told == [(1, 1, 1)] * 3 + [(0, 1, 1), (0, 2, 1), (1, 2, 0)]
