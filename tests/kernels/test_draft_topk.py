"""draft_topk against the oracle: ranks under the target's noise, path probabilities, ties."""

from __future__ import annotations

import math
import random

import pytest
import sampling_oracle as oracle
import torch
from sampling_cases import Rows, parameter_tensors, random_rows
from sampling_oracle import Parameters


@pytest.fixture
def draft_topk(sampler):
    return sampler("draft_topk")


def check_drafts(kernel, case: Rows, k: int, token_map: list[int] | None = None, **more) -> None:
    """Ids exactly; probabilities within what float32 noise, exp and sums leave.

    A score is off by the rounding of t (in the oracle too), 2^-23 of max |t| where a kernel scales
    a difference instead, and 2^-16 of noise; a probability by that relative to itself, twice
    (numerator and sum).
    """
    parameters = parameter_tensors(case.parameters)
    vocabulary = case.logits.shape[1]
    probs, ids = kernel(
        case.logits,
        torch.tensor(case.positions),
        None if case.owners is None else torch.tensor(case.owners),
        parameters["temperatures"],
        parameters["top_ks"],
        parameters["seeds"],
        None if token_map is None else torch.tensor(token_map),
        k,
        **more,
    )
    assert probs.dtype == torch.float32
    assert ids.dtype == torch.int64
    hashed = list(range(vocabulary)) if token_map is None else token_map
    for row in range(case.logits.shape[0]):
        owner = case.parameters[case.owner(row)]
        logits = case.logits[row].float()
        want_probs, want_ids = oracle.drafts(logits.tolist(), case.positions[row], owner, hashed, k)
        assert ids[row].tolist() == want_ids, f"row {row}"
        finite = logits[logits.isfinite()].abs()
        largest = finite.max().item() / owner.temperature if len(finite) else 0.0
        bound = 2 * (2**-16 + largest * 2**-23)
        assert probs[row].tolist() == pytest.approx(want_probs, rel=bound, abs=1e-30), f"row {row}"


@pytest.mark.parametrize(
    ("vocabulary", "k", "dtype"),
    [
        (1, 1, torch.float32),
        (16, 16, torch.bfloat16),
        (63, 4, torch.float32),
        (131, 3, torch.float32),
    ],
    ids=str,
)
def test_sizes(draft_topk, vocabulary: int, k: int, dtype: torch.dtype) -> None:
    check_drafts(draft_topk, random_rows(vocabulary, 2, 2, vocabulary, dtype=dtype), k)


def test_noise_is_hashed_by_target_id(draft_topk) -> None:
    case = random_rows(5, 2, 2, 70)
    ids = random.Random(0).sample(range(150_000), 70)
    check_drafts(draft_topk, case, 4, ids)


def test_rows_may_name_their_requests(draft_topk) -> None:
    case = random_rows(6, 4, 1, 70)
    case = Rows(case.logits, case.positions, case.parameters[:2], owners=[1, 0, 1, 1])
    check_drafts(draft_topk, case, 3)


def test_unusable_rows_and_rows_with_few_tokens(draft_topk) -> None:
    case = random_rows(8, 5, 1, 80)
    case.logits[0, 9] = math.nan
    case.logits[1] = -math.inf
    case.logits[2] = -math.inf
    case.logits[2, [71, 70]] = torch.tensor([1.0, 2.0])
    case.logits[3, 79] = math.inf
    check_drafts(draft_topk, case, 4)


def test_greedy_ties_go_to_the_lowest_id(draft_topk) -> None:
    logits = torch.zeros(2, 90)
    logits[1, [40, 7, 9]] = 5.0
    case = Rows(logits, [0, 1], [Parameters(0.7, 1, seed=s) for s in range(2)])
    check_drafts(draft_topk, case, 5)
    check_drafts(draft_topk, case, 5, greedy=True)


def test_equal_scores_go_to_the_lowest_id(draft_topk) -> None:
    """Noise alone never ties within a row (the hash of an id is one to one); a map can make it."""
    case = Rows(torch.zeros(3, 100), [5, 6, 7], [Parameters(seed=3)])
    check_drafts(draft_topk, case, 5, [token // 3 for token in range(100)])
    check_drafts(draft_topk, case, 16, [7] * 100)
