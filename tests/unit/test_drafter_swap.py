"""Staging beside the serving drafter, and a commit that every rank makes or none."""

from __future__ import annotations

import asyncio
import struct
import threading

import pytest
import torch
from drafter_toys import (
    DRAFT_VOCAB,
    OFFSETS,
    LocalEngine,
    make_file,
    make_live,
    make_swap,
    wait_until,
)

from sglang_respec.drafter.pace import Pace
from sglang_respec.drafter.reader import read_layout
from sglang_respec.drafter.stage import Weights, stage, tensors_of_file
from sglang_respec.drafter.swap import CPU, Commit, DrafterSwap
from sglang_respec.errors import RespecError


def staged(live, path, content=None):
    path.write_bytes(make_file(2.0) if content is None else content)
    layout = read_layout(path)
    return stage(live, tensors_of_file(path, layout, layout, Pace(1)), Pace(1))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "push"


def push(swap: DrafterSwap, file, value: float, **fields) -> dict:
    file.write_bytes(make_file(value))
    layout = read_layout(file)
    swap.begin(
        "p", lambda pace: stage(swap.live, tensors_of_file(file, layout, layout, pace), pace)
    )
    answer = swap.commit(Commit("p", **fields))
    while answer["status"] == "staging":
        answer = swap.commit(Commit("p", **fields))
    return answer


def values(swap: DrafterSwap) -> set[float]:
    return {x for p in swap.live.own.values() for x in p.flatten().tolist()}


def test_staging_changes_nothing_and_a_commit_everything(file):
    live = make_live()
    addresses = {name: each.data_ptr() for name, each in live.own.items()}
    weights = staged(live, file)
    assert all(not each.any() for each in live.own.values())
    live.write(weights)
    assert all((each == 2.0).all() for each in live.own.values())
    assert {name: each.data_ptr() for name, each in live.own.items()} == addresses
    assert live.token_map.tolist() == [i + d for i, d in enumerate(OFFSETS)]


def test_what_is_the_targets_is_never_written(file):
    live = make_live()
    shared = live.model.embed_tokens.weight
    before = shared.clone()
    assert "embed_tokens.weight" not in live.own
    blob = struct.pack(f"<{shared.numel()}f", *[9.0] * shared.numel())
    content = make_file(2.0, **{"embed_tokens.weight": ("F32", tuple(shared.shape), blob)})
    live.write(staged(live, file, content))
    assert torch.equal(shared, before)


def test_a_parameter_that_nothing_wrote_is_found(file):
    """SGLang's `load_weights` drops names it does not know; the twins tell."""
    live = make_live()
    content = make_file(2.0, **{"norm.weight": None})
    with pytest.raises(RespecError, match="norm is not finite"):
        staged(live, file, content)


def test_a_value_too_large_for_the_serving_type_is_found(file):
    live = make_live()
    for each in live.own.values():
        each.data = each.data.half()
    with pytest.raises(RespecError, match="float16"):
        staged(live, file, make_file(1e6))


def test_each_rank_takes_its_part(file):
    q = struct.pack("<16f", *range(16))
    content = make_file(0.0, **{"layers.0.self_attn.q_proj.weight": ("F32", (4, 4), q)})
    for rank in (0, 1):
        weights = staged(make_live(rank, 2), file, content)
        rows = weights.parameters["qkv_proj"][:2].flatten().tolist()
        assert rows == list(range(8 * rank, 8 * rank + 8))


def test_versions_only_grow_and_earlier_weights_come_back(file):
    swap = make_swap()
    for number, value in enumerate((1.0, 2.0), start=1):
        assert push(swap, file, value, label=f"v{value}")["version"] == number
    swap.begin_restore("r", 1)
    answer = swap.commit(Commit("r", origin="rollback", restores=1))
    while answer["status"] == "staging":
        answer = swap.commit(Commit("r", origin="rollback", restores=1))
    assert (answer["version"], answer["previous"]) == (3, 2)
    assert values(swap) == {1.0}
    assert (swap.serving.label, swap.serving.restores) == ("v1.0", 1)
    assert swap.history.before_serving() == 2


def test_the_drafter_of_the_start_can_come_back(file):
    swap = make_swap()
    push(swap, file, 1.0)
    swap.begin_restore("r", 0)
    while swap.commit(Commit("r", origin="rollback", restores=0))["status"] == "staging":
        pass
    assert values(swap) == {0.0}
    assert swap.live.token_map.tolist() == list(range(DRAFT_VOCAB))


def test_weights_beyond_the_limit_are_let_go(file):
    swap = make_swap(keep=2)
    for value in (1.0, 2.0, 3.0):
        push(swap, file, value)
    assert [swap.history.holds(number) for number in range(4)] == [False, False, True, True]
    with pytest.raises(RespecError, match=r"kept: 2, 3"):
        swap.begin_restore("r", 0)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"base_version": 0}, "committed"), ({"base_version": 1}, "conflict"),
        ({"sha256": "b"}, "committed"),
    ],
)  # fmt: skip
def test_conditions_of_a_commit(file, fields, status):
    assert push(make_swap(), file, 1.0, **fields)["status"] == status


def test_the_same_file_again_is_no_swap(file):
    swap = make_swap()
    push(swap, file, 1.0, sha256="a")
    assert push(swap, file, 1.0, sha256="a", base_version=0)["status"] == "same"
    assert swap.serving.number == 1


def test_a_failed_staging_says_why_and_leaves_everything(file):
    swap = make_swap()

    def source(_: Pace) -> Weights:
        raise OSError("the disk\nis gone")

    swap.begin("p", source)
    wait_until(lambda: swap._staging.readiness == "failed")
    assert swap.commit(Commit("p")) == {"status": "failed", "error": "the disk is gone"}
    assert swap.serving.number == 0
    assert push(swap, file, 1.0)["status"] == "committed"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_staging_ends_its_thread_alone():
    swap = make_swap()

    def source(_: Pace) -> Weights:
        raise ZeroDivisionError

    swap.begin("p", source)
    wait_until(lambda: swap._staging.readiness == "failed")
    assert "without a result" in swap.commit(Commit("p"))["error"]


def test_a_commit_of_something_else_fails(file):
    assert make_swap().commit(Commit("never staged"))["status"] == "failed"


def test_one_staging_at_a_time():
    swap, gate = make_swap(), threading.Event()
    swap.begin("first", lambda pace: (gate.wait(10), swap.live.snapshot(CPU, pace))[1])
    with pytest.raises(RespecError, match="still being staged"):
        swap.begin("second", lambda pace: swap.live.snapshot(CPU, pace))
    assert swap.commit(Commit("first")) == {"status": "staging"}
    gate.set()
    wait_until(lambda: swap._staging.readiness == "ready")
    assert swap.commit(Commit("first"))["status"] == "committed"


async def stage_on(engine: LocalEngine, file, value: float) -> dict:
    file.write_bytes(make_file(value))
    take = list(read_layout(file))
    await engine.call("stage", push="p", take=take, path=str(file))
    answer = {"status": "staging"}
    while answer["status"] == "staging":
        answer = await engine.call("commit", push="p", label="", sha256="", base_version=None)
    return answer


def test_every_rank_commits_the_same_version(file):
    engine = LocalEngine(ranks=2)
    assert asyncio.run(stage_on(engine, file, 1.0))["status"] == "committed"
    assert [swap.serving.number for swap in engine.swaps] == [1, 1]
    assert [engine.serving_value(rank) for rank in (0, 1)] == [{1.0}, {1.0}]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_when_one_rank_cannot_stage_nobody_commits(file, failing):
    engine = LocalEngine(ranks=4)

    def fail(rank: int) -> None:
        if rank == failing:
            raise OSError(f"rank {rank} has no room")

    engine.before_staging.append(fail)
    answer = asyncio.run(stage_on(engine, file, 1.0))
    assert answer == {"status": "failed", "error": f"rank {failing} has no room"}
    assert [engine.serving_value(rank) for rank in range(4)] == [{0.0}] * 4
    engine.before_staging.clear()
    assert asyncio.run(stage_on(engine, file, 1.0))["status"] == "committed"


def test_ranks_wait_for_the_slowest(file):
    engine, gate = LocalEngine(ranks=2), threading.Event()
    engine.before_staging.append(lambda rank: gate.wait(10) if rank else None)

    async def run() -> list[dict]:
        file.write_bytes(make_file(1.0))
        await engine.call("stage", push="p", take=list(read_layout(file)), path=str(file))
        early = await engine.call("commit", push="p")
        assert engine.serving_value(0) == {0.0}
        gate.set()
        late = {"status": "staging"}
        while late["status"] == "staging":
            late = await engine.call("commit", push="p")
        return [early, late]

    assert [each["status"] for each in asyncio.run(run())] == ["staging", "committed"]
