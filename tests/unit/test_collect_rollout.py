"""A rollout put together from parts: chunks, repetitions, gaps, cuts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sglang_respec.learner.collect_rollout import Finish, OpenRollout, RowFormat
from sglang_respec.learner.collect_top import pack_top, unpack_top

WIDTH, LISTED = 6, 3
ROWS = RowFormat(torch.bfloat16, WIDTH, LISTED)


def aux_of(positions: range) -> Any:
    """Rows that say which token they are of."""
    rows = torch.tensor([[float(p)] * WIDTH for p in positions], dtype=torch.bfloat16)
    return rows.view(-1, WIDTH).view(torch.uint8).numpy()


def top_of(indices: range) -> Any:
    """Rows whose likeliest token is their index."""
    logits = torch.full((len(indices), 64), -8.0)
    for row, index in enumerate(indices):
        logits[row, index] = 2.0
    return pack_top(logits, torch.ones(len(indices)), LISTED).numpy()


def rollout(prompt_tokens: int, max_tokens: int = 100) -> OpenRollout:
    return OpenRollout("r", prompt_tokens, 7, 0.5, ROWS, max_tokens)


def finish(mine: OpenRollout, tokens: int) -> Any:
    return mine.finish(Finish(range(tokens), drafter_version=2, policy_version=3))


def test_chunks_verifies_and_a_cached_prefix():
    mine = rollout(10)
    mine.put_aux(4, aux_of(range(4, 7)))
    mine.put_aux(7, aux_of(range(7, 10)))
    mine.put_top(0, top_of(range(1)))
    mine.put_aux(10, aux_of(range(10, 13)))
    mine.put_top(1, top_of(range(1, 4)))
    sample = finish(mine, 14)
    assert (sample.prompt_tokens, sample.generated_tokens, sample.first_aux) == (10, 4, 4)
    assert sample.aux.dtype == torch.bfloat16
    assert sample.aux[:, 0].tolist() == list(range(4, 13))
    likeliest = sample.top_ids.gather(1, sample.top_logprobs.argmax(1, keepdim=True))
    assert likeliest.flatten().tolist() == [0, 1, 2, 3]
    assert sample.tokens.tolist() == list(range(14))
    assert (sample.seed, sample.temperature) == (7, 0.5)
    assert (sample.drafter_version, sample.policy_version) == (2, 3)


def test_a_retracted_request_comes_again():
    mine = rollout(10)
    mine.put_aux(0, aux_of(range(10)))
    mine.put_top(0, top_of(range(1)))
    mine.put_aux(10, aux_of(range(20, 22)))  # of a step whose tokens were taken back
    mine.put_aux(8, aux_of(range(8, 12)))
    mine.put_top(1, top_of(range(1, 3)))
    sample = finish(mine, 13)
    assert sample.aux[:, 0].tolist() == list(range(12)), "the later part counts"


def test_states_begin_after_the_last_gap():
    mine = rollout(10)
    mine.put_aux(0, aux_of(range(3)))
    mine.put_aux(6, aux_of(range(6, 11)))
    mine.put_top(0, top_of(range(2)))
    assert finish(mine, 12).first_aux == 6


@pytest.mark.parametrize("lost", ["prompt", "answer", "listed", "end"])
def test_a_missing_part_spoils_the_rollout(lost):
    mine = rollout(4, max_tokens=1000)
    if lost != "prompt":
        mine.put_aux(0, aux_of(range(4)))
    mine.put_top(0, top_of(range(1)))
    mine.put_aux(4, aux_of(range(4, 6)))
    mine.put_aux(7 if lost == "answer" else 6, aux_of(range(2)))
    mine.put_top(2 if lost == "listed" else 1, top_of(range(4)))
    assert finish(mine, 400 if lost == "end" else 9) is None


def test_long_rollouts_are_cut():
    mine = rollout(4, max_tokens=300)
    mine.put_aux(0, aux_of(range(4)))
    mine.put_top(0, top_of(range(1)))
    for start in range(0, 600, 60):
        mine.put_aux(4 + start, aux_of(range(4 + start, 64 + start)))
        mine.put_top(1 + start, top_of(range(60)))
    sample = finish(mine, 605)
    assert len(sample.tokens) == 300
    assert len(sample.aux) == 299
    assert len(sample.top_ids) == 296
    assert sample.aux[-1, 0] == float(torch.tensor(298.0).bfloat16())


def test_nothing_generated_is_no_rollout():
    mine = rollout(4)
    mine.put_aux(0, aux_of(range(4)))
    assert finish(mine, 4) is None


@pytest.mark.parametrize("listed", [1, 5, 40])
def test_listed_and_tail_add_up(listed):
    torch.manual_seed(0)
    logits = (torch.randn(9, 40) * 4).to(torch.bfloat16)
    temperatures = torch.tensor([1.0, 0.5, 2.0] * 3)
    ids, logprobs, tail = unpack_top(pack_top(logits, temperatures, listed))
    exact = (logits.double() / temperatures[:, None]).log_softmax(-1)
    assert ids.dtype == torch.int32
    assert np.array_equal(
        ids.sort(1).values.numpy(), exact.topk(listed).indices.int().sort(1).values.numpy()
    )
    # A float32 sum of 40 terms and one rounding of a logarithm near 10.
    assert torch.allclose(logprobs.double(), exact.gather(1, ids.long()), atol=1e-5)
    assert torch.allclose(tail.double() + logprobs.double().exp().sum(1), torch.ones(9).double())
    assert (tail >= 0).all()
