"""A swap on a GPU: staged on a stream of its own, committed under a captured graph.

Needs torch and pytest alone; the drafter is the toy of `tests/toys`.
"""

from __future__ import annotations

import pytest
import torch
from drafter_toys import DRAFT_VOCAB, HIDDEN, Drafter, Target, make_file, wait_until

from sglang_respec.drafter.guard import GuardPolicy
from sglang_respec.drafter.reader import read_layout
from sglang_respec.drafter.stage import LiveDrafter, own_parameters, stage, tensors_of_file
from sglang_respec.drafter.swap import Commit, DrafterSwap

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LONG_CYCLES = 200_000_000  # about a tenth of a second


@pytest.fixture
def swap() -> DrafterSwap:
    target = Target().cuda()
    drafter = Drafter(target).cuda()
    live = LiveDrafter(
        drafter, own_parameters(drafter, target), torch.arange(DRAFT_VOCAB, device="cuda")
    )
    return DrafterSwap(live, label="start", keep=3, guard=GuardPolicy(0, 0.7), now=0.0)


def test_a_captured_graph_sees_the_new_weights_after_the_step_that_ran(swap, tmp_path):
    path = tmp_path / "push"
    path.write_bytes(make_file(2.0))
    layout = read_layout(path)
    head, inputs = swap.live.own["lm_head"], torch.ones(HIDDEN, device="cuda")
    graph, forward = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph):
        output = head @ inputs

    swap.begin(
        "p", lambda pace: stage(swap.live, tensors_of_file(path, layout, layout, pace), pace)
    )
    wait_until(lambda: swap._staging.readiness == "ready")
    with torch.cuda.stream(forward):
        torch.cuda._sleep(LONG_CYCLES)  # the step before, still running when the commit comes
        graph.replay()
        before = output.clone()
    assert swap.commit(Commit("p"), stream=torch.cuda.stream(forward))["status"] == "committed"
    with torch.cuda.stream(forward):
        graph.replay()
        after = output.clone()
    torch.cuda.synchronize()
    assert before.tolist() == [0.0] * DRAFT_VOCAB
    assert after.tolist() == [2.0 * HIDDEN] * DRAFT_VOCAB
    assert all((each == 2.0).all() for each in swap.live.own.values())


def test_weights_kept_in_host_memory_come_back(swap, tmp_path):
    path = tmp_path / "push"
    for value in (1.0, 2.0):
        path.write_bytes(make_file(value))
        layout = read_layout(path)
        swap.begin("p", lambda pace, layout=layout: stage(
            swap.live, tensors_of_file(path, layout, layout, pace), pace))  # fmt: skip
        wait_until(lambda: swap._staging.readiness == "ready")
        swap.commit(Commit("p"))
    kept = swap.history.weights_of(1)
    assert {each.device.type for each in kept.parameters.values()} == {"cpu"}
    swap.begin_restore("r", 1)
    wait_until(lambda: swap._staging.readiness == "ready")
    swap.commit(Commit("r", origin="rollback", restores=1))
    torch.cuda.synchronize()
    assert all((each == 1.0).all() for each in swap.live.own.values())
