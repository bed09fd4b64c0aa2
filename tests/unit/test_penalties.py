"""The penalty table against the rules written out per request and token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_respec.sampling.penalties import PenaltyParameters, PenaltyTable

V, SLOTS = 11, 6
TOKENS = st.lists(st.integers(0, V - 1), max_size=8)
PARAMETERS = st.builds(
    PenaltyParameters,
    frequency=st.sampled_from([0.0, 0.5, -1.0]),
    presence=st.sampled_from([0.0, 0.25, -0.5]),
    repetition=st.sampled_from([1.0, 1.25, 0.8]),
    min_new_tokens=st.integers(0, 6),
    stop_ids=st.lists(st.integers(0, V - 1), unique=True, max_size=3).map(tuple),
)
# Factors and logits are short binary fractions, so that sums and products are exact in float32;
# a quotient is rounded once on either side.
LOGITS = st.lists(st.integers(-40, 40).map(lambda n: n / 8), min_size=V, max_size=V)


def expected(
    parameters: PenaltyParameters, generated: list[int], logits: list[float]
) -> list[float]:
    penalised = []
    for token, logit in enumerate(logits):
        times = generated.count(token)
        logit -= parameters.frequency * times + parameters.presence * (times > 0)
        if token in parameters.stop_ids and len(generated) < parameters.min_new_tokens:
            logit = -math.inf
        if times:
            factor = float(torch.tensor(parameters.repetition))
            logit = logit / factor if logit > 0 else logit * factor
        penalised.append(logit)
    return penalised


def table() -> PenaltyTable:
    return PenaltyTable(SLOTS, V, "cpu")


@settings(max_examples=150, deadline=None)
@given(PARAMETERS, TOKENS, TOKENS, TOKENS, LOGITS)
def test_what_was_generated_before_counts_with_commits_and_path(
    parameters: PenaltyParameters,
    before: list[int],
    committed: list[int],
    path: list[int],
    logits: list[float],
) -> None:
    penalties = table()
    slots = torch.tensor([4, 1])
    penalties.admit(slots, [parameters, PenaltyParameters()], [before, [3]])
    for start in range(0, len(committed), 3):  # several tokens per step, as a verify commits
        step = committed[start : start + 3]
        rows = torch.full((2, 3), -1)
        rows[0, : len(step)] = torch.tensor(step)
        penalties.count(slots, rows)
    got = torch.tensor([logits, logits])
    paths = torch.tensor([[*path, -1], [-1] * (len(path) + 1)])
    penalties.penalise(got, slots, paths)
    want = expected(parameters, [*before, *committed, *path], logits)
    assert got[0].tolist() == pytest.approx(want, rel=2**-23)
    assert got[1].tolist() == logits, "a request that asks for nothing keeps its logits"


def test_a_slot_starts_anew_with_its_next_request() -> None:
    penalties = table()
    slot = torch.tensor([2])
    penalties.admit(
        slot, [PenaltyParameters(presence=1.0, min_new_tokens=9, stop_ids=(0, 5))], [[1]]
    )
    penalties.count(slot, torch.tensor([[2, 3]]))
    penalties.admit(slot, [PenaltyParameters()], [[]])
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(0))
    got = logits.clone()
    penalties.penalise(got, slot)
    assert torch.equal(got, logits)


def test_nothing_is_allocated_before_anybody_asks() -> None:
    penalties = table()
    logits = torch.zeros(1, V)
    penalties.count(torch.tensor([0]), torch.tensor([[1]]))
    penalties.penalise(logits, torch.tensor([0]))
    assert not penalties.in_use
    assert not logits.any()


def test_forbidden_tokens_stay_forbidden() -> None:
    penalties = table()
    slot = torch.tensor([0])
    penalties.admit(slot, [PenaltyParameters(0.5, 0.5, 1.3)], [[4, 4]])
    logits = torch.zeros(1, V)
    logits[0, 4] = -math.inf
    penalties.penalise(logits, slot)
    assert logits[0, 4] == -math.inf
    assert not logits.isnan().any()


def test_bfloat16_logits_are_written_in_place() -> None:
    penalties = table()
    slot = torch.tensor([0])
    penalties.admit(slot, [PenaltyParameters(frequency=1.0)], [[1, 1]])
    logits = torch.zeros(1, V, dtype=torch.bfloat16)
    penalties.penalise(logits, slot)
    assert logits.dtype is torch.bfloat16
    assert logits[0, :3].tolist() == [0, -2, 0]
