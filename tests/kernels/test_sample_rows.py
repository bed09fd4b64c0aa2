"""sample_rows against the oracle: every filter, every size, unusable rows."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from sampling_cases import Rows, check_rows, random_rows
from sampling_oracle import Parameters

from respec_kernels import implementation


@pytest.fixture
def sample_rows():
    return implementation("sample_rows", False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("vocabulary", [1, 2, 63, 100, 257])
def test_sizes(sample_rows, vocabulary: int, filtered: bool, dtype: torch.dtype) -> None:
    case = random_rows(vocabulary, 5, 3, vocabulary, filtered=filtered, dtype=dtype)
    check_rows(sample_rows, case)
    check_rows(sample_rows, case, live=[4, -1, 14, 0, 4])


@pytest.mark.parametrize("filtered", [False, True])
def test_unusable_rows_fail_alone(sample_rows, filtered: bool) -> None:
    case = random_rows(3, 4, 2, 90, filtered=filtered)
    case.logits[1, 17] = math.nan
    case.logits[2, 89] = math.inf
    case.logits[5] = -math.inf
    case.logits[6] = -math.inf
    case.logits[6, 41] = -3.0
    assert [case.expected(row)[0] for row in (1, 2, 5, 6)] == [-1, -1, -1, 41]
    check_rows(sample_rows, case)


def test_all_greedy_takes_the_lowest_of_the_largest(sample_rows) -> None:
    logits = torch.zeros(3, 50)
    logits[1, [40, 7, 9]] = 5.0
    case = Rows(logits, [0, 1, 2], [Parameters(0.7, 1, seed=s) for s in range(3)], filtered=False)
    check_rows(sample_rows, case)
    check_rows(partial(sample_rows, greedy=True), case)
