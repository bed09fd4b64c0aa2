"""A batch after a forward pass: as SGLang's own isolation leaves it, field by field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import sglang.srt.utils  # noqa: F401  (before its scheduler: its modules import each other)
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_respec.upstream.isolation import isolate


class Info:
    """Of a batch's sampling info, what isolation asks of it."""

    def __init__(self, used_up: bool = False) -> None:
        self.used_up = used_up

    def copy_for_forward(self) -> Info:
        return Info(used_up=True)


def batch(algorithm: SpeculativeAlgorithm = SpeculativeAlgorithm.EAGLE3) -> ScheduleBatch:
    made = ScheduleBatch(reqs=[])
    made.spec_algorithm, made.forward_mode = algorithm, ForwardMode.DECODE
    made.sampling_info = Info()
    return made


def upstream(batch: ScheduleBatch, *, overlap: bool = False) -> AbstractContextManager[None]:
    """SGLang's own, which without overlap asks nothing of its scheduler."""
    found: AbstractContextManager[None] = Scheduler._forward_isolation(None, batch, overlap=overlap)
    return found


def ours(batch: ScheduleBatch, *, overlap: bool = False) -> AbstractContextManager[None]:
    def original(_: Any, batch: ScheduleBatch, *, overlap: bool) -> AbstractContextManager[None]:
        return upstream(batch, overlap=overlap)

    return isolate(original, None, batch, overlap=overlap)


Isolation = Callable[..., AbstractContextManager[None]]


def fail_in_the_middle(isolation: Isolation, of: ScheduleBatch) -> None:
    with isolation(of):
        assert of.sampling_info.used_up
        for field in dataclasses.fields(of):
            setattr(of, field.name, f"{field.name} in the pass")
        of.remembered_by_a_pass = 1
        raise ValueError("the pass")


def run(isolation: Isolation, of: ScheduleBatch) -> dict[str, Any]:
    """What a pass leaves that changed every field and failed."""
    with pytest.raises(ValueError, match="the pass"):
        fail_in_the_middle(isolation, of)
    return dict(vars(of))


def test_all_fields_come_back_and_nothing_else() -> None:
    before = batch()
    fields = dict(vars(before))
    left = run(ours, before)
    assert left == fields | {"remembered_by_a_pass": 1}
    other = batch()
    expected = run(upstream, other)
    assert left.keys() == expected.keys()
    assert {k: v for k, v in left.items() if k != "sampling_info"} == {
        k: v for k, v in expected.items() if k != "sampling_info"
    }


def test_a_batch_without_sampling_info() -> None:
    made = batch()
    made.sampling_info = None
    with ours(made):
        assert made.sampling_info is None
        made.forward_mode = ForwardMode.TARGET_VERIFY
    assert made.forward_mode == ForwardMode.DECODE


def test_plain_batches_are_sglangs_own() -> None:
    """Without speculation only the sampling info is put back."""
    made = batch(SpeculativeAlgorithm.NONE)
    info = made.sampling_info
    with ours(made):
        assert made.sampling_info.used_up
        made.forward_mode = ForwardMode.EXTEND
    assert made.sampling_info is info
    assert made.forward_mode == ForwardMode.EXTEND
