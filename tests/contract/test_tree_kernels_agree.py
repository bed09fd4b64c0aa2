"""SGLang's own Triton tree kernels and its seeded sampler as the judges of ours.

Importing them imports half of SGLang, so these few cases are a test of their own. Its tree kernels
run in the interpreter.
"""

from __future__ import annotations

import os
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from tree_cases import (
    Drafted,
    Verifiable,
    agreeing,
    build_arguments,
    draft,
    random_verifiable,
    verify_arguments,
)

from respec_kernels import TreeMaskMode, implementation
from respec_kernels.reference.noise import murmur_hash32

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="on a GPU, tests/gpu compares with CUDA"
)
LINKS = ("retrieve_index", "retrieve_next_token", "retrieve_next_sibling")
DRAFTED = {
    "one node": draft(0, [3, 0], 2, 1, 1),
    "chain": draft(1, [4, 0, 7], 1, 4, 5),
    "one step": draft(2, [2, 9], 5, 1, 6),
    "tree": draft(3, [0, 5, 11], 4, 4, 16),
    "odd tree": draft(4, [6], 3, 5, 33),
    # Every child ties with its parent; the choice drops some parents and keeps their children.
    "orphans": replace(
        draft(5, [1, 8], 4, 3, 6), chosen=[[1, 3, 6, 9, 20]] * 2,
        parent_list=[[-1, 0, 1, 2, 3, 6, 9, 12, 13]] * 2,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def upstream() -> ModuleType:
    return pytest.importorskip("sglang.kernels.ops.speculative.spec_tree")


def as_sglang_calls_it(arguments: dict[str, Any]) -> dict[str, Any]:
    """SGLang fills its outputs before the call: links with -1, the mask with ones."""
    for name in LINKS:
        arguments[name].fill_(-1)
    arguments["tree_mask"].fill_(1)
    return arguments


def test_the_modes_have_the_same_names_and_values(upstream: ModuleType) -> None:
    assert {m.name: int(m) for m in upstream.TreeMaskMode} == {m.name: int(m) for m in TreeMaskMode}


@pytest.mark.parametrize("mode", [TreeMaskMode.FULL_MASK, TreeMaskMode.QLEN_ONLY])
@pytest.mark.parametrize("case", DRAFTED.values(), ids=DRAFTED.keys())
def test_build_tree(upstream: ModuleType, case: Drafted, mode: TreeMaskMode) -> None:
    ours = as_sglang_calls_it(build_arguments(case, mode))
    theirs = as_sglang_calls_it(build_arguments(case, mode))
    implementation("build_tree", False)(**ours)
    names = ("parent_list", "top_scores_index", "seq_lens", "tree_mask", "positions", *LINKS)
    upstream.sgl_build_tree_kernel_triton(
        *(theirs[name] for name in names), case.topk, case.steps, case.nodes, mode
    )
    for name in ("tree_mask", "positions", *LINKS):
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("seed", range(6))
def test_verify_tree(upstream: ModuleType, seed: int) -> None:
    case = random_verifiable(seed, 3, 12, 1 + seed, vocabulary=2, slots=5)
    compare_walks(upstream, case)


def test_verify_tree_with_everything_accepted(upstream: ModuleType) -> None:
    compare_walks(upstream, agreeing(DRAFTED["tree"].trees, slots=5))
    compare_walks(upstream, agreeing(DRAFTED["chain"].trees, slots=5))


def compare_walks(upstream: ModuleType, case: Verifiable) -> None:
    ours, theirs = verify_arguments(case), verify_arguments(case)
    theirs["accept_index"].fill_(-1)
    implementation("verify_tree", False)(**ours)
    del theirs["topk"]
    upstream.verify_tree_greedy_triton(**theirs)
    for name in ("predicts", "accept_index", "accept_token_num"):
        assert torch.equal(ours[name], theirs[name]), name


@pytest.fixture(scope="module")
def seeded_sampler() -> Any:
    """SGLang's function without torch.compile, and with the hash that its CPU build lacks here.

    That hash is held against SGLang's kernel by tests/unit/test_noise.py.
    """
    sampler = pytest.importorskip("sglang.srt.layers.sampler")
    compiled = sampler.multinomial_with_seed
    plain = getattr(compiled, "_torchdynamo_orig_callable", compiled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "murmur_hash32", murmur_hash32)
        yield plain


@pytest.mark.parametrize("as_served", [False, True], ids=["scaled logits", "log of softmax"])
def test_unfiltered_rows_get_the_tokens_of_sglangs_seeded_sampler(
    seeded_sampler: Any, as_served: bool
) -> None:
    """10,000 rows. Served, SGLang passes log(softmax(t)): t less a constant, rounded to float32."""
    rows, vocabulary = 10_000, 211
    generator = torch.Generator().manual_seed(20)
    spread = 0.1 + 5 * torch.rand(rows, 1, generator=generator)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread
    temperatures = 0.5 + torch.rand(rows, generator=generator)
    positions = torch.randint(0, 1 << 17, (rows,), generator=generator)
    seeds = torch.randint(0, 2**63 - 1, (rows,), generator=generator)
    everything = torch.full((rows,), 1 << 30, dtype=torch.int32)
    ones, zeros = torch.ones(rows), torch.zeros(rows)
    scaled = logits / temperatures[:, None]
    scores = scaled.softmax(1).log() if as_served else scaled
    tokens, _ = implementation("sample_rows", False)(
        logits, positions, None, temperatures, everything, ones, zeros, seeds, filtered=False
    )
    assert torch.equal(tokens, seeded_sampler(scores, seeds, positions)[:, 0])
    assert len(tokens.unique()) == vocabulary
