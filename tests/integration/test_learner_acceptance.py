"""What the learner measures without a server is what a server does, verify by verify."""

from __future__ import annotations

import pytest
import torch
from demo.coupled import to_sample
from demo.data import Sample
from rollouts import generate
from serving import Servers, speculation
from transformers import AutoModelForCausalLM

from respec_server.bundled import demo_models
from sglang_respec.learner.acceptance import measure
from sglang_respec.learner.checkpoint import load_drafter
from sglang_respec.learner.target import read_target_tables

pytestmark = pytest.mark.server

STEPS, REQUESTS, TOKENS = 3, 16, 64


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_coupled_acceptance_is_what_the_server_counts(
    servers: Servers, prompts: list[list[int]], temperature: float
) -> None:
    server = servers.get(*speculation(STEPS, 1, STEPS + 1))
    sampling = [
        {"temperature": temperature, "max_new_tokens": TOKENS, "sampling_seed": 700 + i}
        for i in range(REQUESTS)
    ]
    served = generate(server.url, prompts[:REQUESTS], sampling, concurrency=4)
    folder, drafter_folder = demo_models()
    target = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    samples = [
        to_sample(
            target, Sample(prompt, list(rollout.output_ids)), request_id=str(i), seed=700 + i,
            temperature=temperature,
        )
        for i, (prompt, rollout) in enumerate(zip(prompts, served.rollouts, strict=False))
    ]  # fmt: skip
    drafter = load_drafter(drafter_folder, read_target_tables(folder).embed_tokens)
    found = measure(drafter, samples, STEPS, window=512, batch_tokens=2048)
    assert found.tokens == sum(len(each.output_ids) - 1 for each in served.rollouts)
    assert found.rounds == sum(each.verifies for each in served.rollouts)
    assert found.length > 1.5
