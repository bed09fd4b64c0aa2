"""The Triton sampling kernels on a real GPU, against the PyTorch references on the CPU.

Needs torch, triton, pytest and hypothesis alone. Logprobs: a sum of V float32 weights in
two different orders, V * 2^-24 in theory and 2^-20 with the partial sums both use, and the bound of
``sampling_cases.logprob_bound`` for the rest.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sampling_cases import Rows, logprob_bound, random_rows, row_arguments
from test_verify_sampled_tree import arguments_of, drafted

from respec_kernels import draft_topk, implementation, sample_rows, verify_sampled_tree

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
VOCABULARIES = [1, 63, 1000, 4096, 32_000, 151_936, 262_144]


def check_against_reference(case: Rows, live: list[int] | None = None) -> None:
    visits = {} if live is None else {"live": torch.tensor(live)}
    want = implementation("sample_rows", False)(**row_arguments(case), **visits)
    on_gpu = {name: each.cuda() for name, each in visits.items()}
    got = sample_rows(**row_arguments(case, "cuda"), **on_gpu)
    assert torch.equal(got[0].cpu(), want[0])
    for slot, row in enumerate(range(len(case.positions)) if live is None else live):
        one, other = got[1][slot].item(), want[1][slot].item()
        if math.isnan(other):
            assert math.isnan(one)
            continue
        temperature = case.parameters[case.owner(row)].temperature
        assert abs(one - other) <= 2 * logprob_bound(case.logits[row], temperature, other)


def test_a_gpu_tensor_goes_to_triton() -> None:
    assert implementation("sample_rows", True).__module__ == "respec_kernels.triton.sample_rows"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_sample_rows(vocabulary: int, filtered: bool, dtype: torch.dtype) -> None:
    case = random_rows(vocabulary, 6, 3, vocabulary, filtered=filtered, dtype=dtype)
    check_against_reference(case)
    check_against_reference(case, live=[4, -1, 17, 0, 4])


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 151_936), (600, 5000), (16_384, 300)])
def test_any_number_of_rows(rows: int, vocabulary: int, filtered: bool) -> None:
    """One row shared by many programs, and many rows of one program each."""
    check_against_reference(random_rows(rows, rows, 1, vocabulary, filtered=filtered))


def test_unusable_rows_fail_alone() -> None:
    case = random_rows(3, 4, 2, 9000)
    case.logits[1, 17] = math.nan
    case.logits[2, 8999] = math.inf
    case.logits[5] = -math.inf
    case.logits[6] = -math.inf
    case.logits[6, 4100] = -3.0
    check_against_reference(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 32_000), (700, 2000), (9, 151_936)])
def test_draft_topk(rows: int, vocabulary: int, k: int, dtype: torch.dtype) -> None:
    case = random_rows(k, rows, 1, vocabulary, dtype=dtype)
    token_map = torch.randperm(200_000, generator=torch.Generator().manual_seed(0))[:vocabulary]
    given = row_arguments(case)
    names = ("logits", "positions", "requests", "temperatures", "top_ks", "seeds")
    here = [given[name] for name in names]
    there = [None if each is None else each.cuda() for each in here]
    want = implementation("draft_topk", False)(*here, token_map, k)
    got = draft_topk(*there, token_map.cuda(), k)
    assert torch.equal(got[1].cpu(), want[1])
    # tests/kernels/test_draft_topk.py derives the bound; |t| stays below 60 here
    torch.testing.assert_close(got[0].cpu(), want[0], rtol=4 * (2**-16 + 60 * 2**-23), atol=1e-30)


@pytest.mark.parametrize("schedule", ["nodes", "levels", "auto"])
@pytest.mark.parametrize(("batch", "nodes"), [(1, 1), (7, 16), (40, 33)])
def test_verify_sampled_tree(batch: int, nodes: int, schedule: str) -> None:
    case = drafted(nodes, batch, nodes, 200, 6)
    want = implementation("verify_sampled_tree", False)(**arguments_of(case), schedule="nodes")
    got = verify_sampled_tree(**arguments_of(case, "cuda"), schedule=schedule)
    for name in ("predicts", "accept_index", "accept_token_num", "row_failed"):
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name)), name
    # sampling_cases.logprob_bound, twice, for |t| up to 50
    bound = 2 * (50 * 2**-23 + 2**-20 + 2**-21)
    torch.testing.assert_close(got.logprobs.cpu(), want.logprobs, rtol=2**-21, atol=bound)


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("schedule", ["nodes", "levels"])
def test_in_a_cuda_graph(schedule: Any, filtered: bool) -> None:
    """Captured with one batch, replayed with another: the other's tokens."""
    first, second = (
        arguments_of(drafted(seed, 4, 8, 3000, 5, filtered=filtered), "cuda") for seed in (1, 2)
    )
    verify_sampled_tree(**first, schedule=schedule)  # compiles, makes the tables
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = verify_sampled_tree(**first, schedule=schedule)
    for name, each in second.items():
        if isinstance(each, torch.Tensor):
            first[name].copy_(each)
    graph.replay()
    want = verify_sampled_tree(**second, schedule=schedule)
    for name in ("predicts", "accept_index", "accept_token_num", "logprobs", "row_failed"):
        assert torch.equal(getattr(replayed, name), getattr(want, name)), name
