"""sample_rows against the oracle: every filter, every size, unusable rows."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from sampling_cases import Rows, check_rows, random_rows, row_arguments
from sampling_oracle import ALL, Parameters

from respec_kernels.reference.sample_rows import likeliest
from respec_kernels.reference.sample_rows import sample_rows as sample_rows_in_pytorch


@pytest.fixture
def sample_rows(sampler):
    return sampler("sample_rows")


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(
    ("vocabulary", "dtype"),
    [(1, torch.float32), (63, torch.bfloat16), (64, torch.float32), (131, torch.float32)],
    ids=str,
)
def test_sizes(sample_rows, vocabulary: int, filtered: bool, dtype: torch.dtype) -> None:
    check_rows(
        sample_rows, random_rows(vocabulary, 2, 2, vocabulary, filtered=filtered, dtype=dtype)
    )


@pytest.mark.parametrize("seed", range(3))
def test_filters(sample_rows, seed: int) -> None:
    check_rows(sample_rows, random_rows(seed, 6, 1, 100))


def test_live_rows_are_the_only_ones_visited(sample_rows) -> None:
    case = random_rows(2, 3, 2, 40)
    check_rows(sample_rows, case, live=[5, -1, 0, 5])
    named = replace(case, owners=[2, 0, 1, 1, 0, 2])
    check_rows(sample_rows, named)
    check_rows(sample_rows, named, live=[1, -7, 5])


def test_rows_of_a_wider_buffer(sample_rows) -> None:
    case = random_rows(4, 3, 1, 70)
    wide = torch.full((3, 100), math.nan)
    wide[:, 9:79] = case.logits
    check_rows(sample_rows, replace(case, logits=wide[:, 9:79]))


@pytest.mark.parametrize("filtered", [False, True])
def test_unusable_rows_fail_alone(sample_rows, filtered: bool) -> None:
    case = random_rows(3, 3, 2, 70, filtered=filtered)
    case.logits[1, 17] = math.nan
    case.logits[2, 69] = math.inf
    case.logits[4] = -math.inf
    case.logits[5] = -math.inf
    case.logits[5, 41] = -3.0
    assert [case.expected(row)[0] for row in (1, 2, 4, 5)] == [-1, -1, -1, 41]
    check_rows(sample_rows, case)


def test_one_allowed_token_wins_with_any_noise(sample_rows) -> None:
    """Filters that leave one token, whatever it scores."""
    logits = torch.linspace(0, 3, 40).expand(3, 40).clone()
    narrow = [
        Parameters(1.0, 2, 0.01, seed=1),
        Parameters(1.0, min_p=1.0),
        Parameters(2.0, top_p=1e-6),
    ]
    case = Rows(logits, [3, 4, 5], narrow)
    assert [case.expected(row)[0] for row in range(3)] == [39, 39, 39]
    check_rows(sample_rows, case)


def test_flat_rows_need_many_inspections(sample_rows) -> None:
    """The best score is seldom an allowed one's: verdicts are asked for again and again."""
    logits = torch.randn(6, 100, generator=torch.Generator().manual_seed(3)) * 0.2
    harsh = [
        *(Parameters(top_k=3, seed=seed) for seed in range(2)),
        *(Parameters(top_p=0.05, seed=seed) for seed in range(2)),
        *(Parameters(0.7, min_p=0.85, seed=seed) for seed in range(2)),
    ]
    case = Rows(logits, list(range(6)), harsh)
    unfiltered = replace(
        case, parameters=[replace(p, top_k=ALL, top_p=1.0, min_p=0.0) for p in harsh]
    )
    assert all(case.expected(row) != unfiltered.expected(row) for row in range(6))
    check_rows(sample_rows, case)


@pytest.mark.parametrize(
    ("parameters", "last"),
    [(Parameters(top_p=0.5), 2), (Parameters(min_p=1.0), 3), (Parameters(top_k=2), 1)],
    ids=["mass before = top_p", "p = min_p * max p", "rank < top_k"],
)
def test_bounds_are_exact(sample_rows, parameters: Parameters, last: int) -> None:
    """Four equal tokens: the bound lies on one of them, in powers of two."""
    case = Rows(torch.zeros(8, 4), list(range(8)), [replace(parameters, seed=5)])
    assert max(case.expected(row)[0] for row in range(8)) == last
    check_rows(sample_rows, case)


def test_parameters_out_of_range_leave_the_most_probable_token(sample_rows) -> None:
    """Nothing hangs, nothing is out of bounds; the server refuses them long before."""
    logits = torch.linspace(0, 3, 40).expand(3, 40).clone()
    wrong = [Parameters(min_p=1.5), Parameters(top_p=-1.0), Parameters(top_k=0, top_p=0.9)]
    tokens, _ = sample_rows(**row_arguments(Rows(logits, [3, 4, 5], wrong)))
    assert tokens[:2].tolist() == [39, 39]
    assert 0 <= tokens[2].item() < 40


def test_all_greedy_takes_the_lowest_of_the_largest(sample_rows) -> None:
    logits = torch.zeros(3, 50)
    logits[1, [40, 7, 9]] = 5.0
    case = Rows(logits, [0, 1, 2], [Parameters(0.7, 1, seed=s) for s in range(3)], filtered=False)
    check_rows(sample_rows, case)
    check_rows(partial(sample_rows, greedy=True), case)


def test_all_greedy_refuses_what_has_no_softmax(sample_rows) -> None:
    """A NaN, a +inf, nothing but -inf: -1, and only there."""
    logits = torch.zeros(5, 50)
    logits[:, 9] = 1.0
    logits[1, 3], logits[2, 3] = math.nan, math.inf
    logits[3], logits[4, 10:] = -math.inf, -math.inf
    case = Rows(logits, list(range(5)), [Parameters(0.5, 1, seed=s) for s in range(5)])
    assert [case.expected(row)[0] for row in range(5)] == [9, -1, -1, -1, 9]
    check_rows(partial(sample_rows, greedy=True), replace(case, filtered=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_likeliest_is_all_greedy_without_the_rest(dtype: torch.dtype) -> None:
    """Ties, temperatures that make ties of near-ties, unusable rows, rows of a wider buffer."""
    wide = (torch.randn(9, 90, generator=torch.Generator().manual_seed(1)) * 2).round().to(dtype)
    logits = wide[:, 10:80]
    logits[1, 3], logits[2, 3], logits[3] = math.nan, math.inf, -math.inf
    logits[4, 10:] = -math.inf
    logits[5] = torch.linspace(1, 1 + 2e-6, 70)
    for temperatures in (torch.ones(9), torch.linspace(0.3, 3, 9)):
        case = Rows(
            logits,
            list(range(9)),
            [Parameters(t, 1) for t in temperatures.tolist()],
            filtered=False,
        )
        expected, _ = sample_rows_in_pytorch(**row_arguments(case), greedy=True, scored=False)
        assert (expected == -1).tolist() == [row in (1, 2, 3) for row in range(9)]
        assert likeliest(logits, temperatures).tolist() == expected.tolist()
    assert likeliest(logits, None).tolist() == likeliest(logits, torch.ones(9)).tolist()
