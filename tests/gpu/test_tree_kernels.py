"""The Triton tree kernels on a real GPU: full sizes, SGLang's own kernels, CUDA graphs.

Needs torch, triton, pytest and hypothesis alone; the comparison with SGLang needs SGLang too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tree_cases import (
    Drafted,
    Verifiable,
    agreeing,
    build_arguments,
    check_build,
    check_verify,
    draft,
    random_verifiable,
    steps_for,
    verify_arguments,
)

from respec_kernels import TreeMaskMode, build_tree, implementation, verify_tree

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FULL, QLEN, PACKED = TreeMaskMode
TREES = [(1, 4), (1, 33), (2, 4), (4, 8), (4, 16), (8, 32), (8, 33), (16, 63), (16, 64)]
BUILT = ("tree_mask", "positions", "retrieve_index", "retrieve_next_token", "retrieve_next_sibling")
WALKED = ("predicts", "accept_index", "accept_token_num")


def drafted(seed: int, batch: int, topk: int, nodes: int, score_levels: int = 0) -> Drafted:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 90, (batch,), generator=generator).tolist()
    steps = nodes - 1 if topk == 1 else steps_for(nodes, topk) + 2
    return draft(seed, lengths, topk, steps, nodes, score_levels)


def test_a_gpu_tensor_goes_to_triton() -> None:
    assert implementation("build_tree", True).__module__ == "respec_kernels.triton.build_tree"


@pytest.mark.parametrize("batch", [1, 7, 64, 300])
@pytest.mark.parametrize(("topk", "nodes"), TREES)
def test_build_tree(batch: int, topk: int, nodes: int) -> None:
    for mode in (FULL, QLEN, PACKED) if nodes <= 32 else (FULL, QLEN):
        check_build(build_tree, drafted(nodes, batch, topk, nodes), mode, "cuda")


@pytest.mark.parametrize("seed", range(30))
def test_build_tree_with_tied_scores(seed: int) -> None:
    check_build(build_tree, drafted(seed, 16, 3, 12, score_levels=2), QLEN, "cuda")


def test_one_node() -> None:
    for mode in TreeMaskMode:
        check_build(build_tree, draft(0, [0, 9, 4], 4, 2, 1), mode, "cuda")
    check_verify(verify_tree, agreeing(draft(0, [0, 9, 4], 4, 2, 1).trees, 3), "cuda")


@pytest.mark.parametrize("batch", [1, 7, 64, 300])
@pytest.mark.parametrize(("topk", "nodes"), TREES)
def test_verify_tree(batch: int, topk: int, nodes: int) -> None:
    trees = drafted(nodes, batch, topk, nodes).trees
    check_verify(verify_tree, agreeing(trees, slots=nodes), "cuda")
    for vocabulary in (1, 2, 4):
        case = random_verifiable(nodes, batch, nodes, topk, vocabulary, slots=9)
        check_verify(verify_tree, case, "cuda")


@pytest.mark.parametrize("mode", list(TreeMaskMode))
@pytest.mark.parametrize(("topk", "nodes"), [(1, 5), (4, 16), (8, 32)])
def test_build_tree_agrees_with_sglang(mode: TreeMaskMode, topk: int, nodes: int) -> None:
    tree = pytest.importorskip("sglang.kernels.ops.speculative.tree")
    case = drafted(1, 64, topk, nodes)
    ours, theirs = (build_arguments(case, mode, "cuda") for _ in range(2))
    for arguments in (ours, theirs):  # as SGLang fills them before the call
        arguments["tree_mask"].fill_(0 if mode == PACKED else 1)
        for name in BUILT[2:]:
            arguments[name].fill_(-1)
    build_tree(**ours)
    tree.build_tree_kernel_efficient(*theirs.values())
    for name in BUILT:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize(("topk", "nodes"), [(1, 5), (4, 16), (8, 32)])
def test_verify_tree_agrees_with_sglang(topk: int, nodes: int) -> None:
    tree = pytest.importorskip("sglang.kernels.ops.speculative.tree")
    case = random_verifiable(2, 64, nodes, topk, vocabulary=2, slots=6)
    ours, theirs = (verify_arguments(case, "cuda") for _ in range(2))
    theirs["accept_index"].fill_(-1)
    verify_tree(**ours)
    del theirs["topk"]
    tree.verify_tree_greedy(*theirs.values())
    for name in WALKED:
        assert torch.equal(ours[name], theirs[name]), name


def replays(kernel: Any, first: dict[str, Any], second: dict[str, Any], outputs: Any) -> None:
    """Capture with the first arguments, copy the second in, replay: the second's results."""
    kernel(**first)  # compiles, and loads the binary
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kernel(**first)
    expected = {
        name: getattr(value, "clone", lambda v=value: v)() for name, value in second.items()
    }
    kernel(**expected)
    for name, value in second.items():
        if isinstance(value, torch.Tensor):
            first[name].copy_(value)
    graph.replay()
    torch.cuda.synchronize()
    for name in outputs:
        assert torch.equal(first[name], expected[name]), name


@pytest.mark.parametrize("mode", list(TreeMaskMode))
def test_build_tree_in_a_cuda_graph(mode: TreeMaskMode) -> None:
    lengths = [[3, 40, 0, 11], [40, 0, 11, 3]]  # one sum, so that FULL_MASK buffers are equal
    first, second = (draft(seed, lengths[seed], 4, 4, 16) for seed in range(2))
    check_build(build_tree, second, mode, "cuda")
    arguments = [build_arguments(case, mode, "cuda") for case in (first, second)]
    replays(build_tree, *arguments, BUILT)


def test_verify_tree_in_a_cuda_graph() -> None:
    first, second = (random_verifiable(seed, 8, 16, 4, 2, slots=6) for seed in range(2))
    assert isinstance(second, Verifiable)
    check_verify(verify_tree, second, "cuda")
    arguments = [verify_arguments(case, "cuda") for case in (first, second)]
    replays(verify_tree, *arguments, WALKED)
