"""Slots of decode steps: always enough for a round, never more than SGLang's, seldom asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sglang.srt.utils  # noqa: F401  (before its scheduler: its modules import each other)
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import ReqKvInfo

from sglang_respec.upstream import kv_reserve


class Batch:
    """Of SGLang's batch, what the reserve looks at; top_up is what SGLang does in every step."""

    def __init__(self, round_slots: int, *, overlap: bool = False, mirrored: bool = True) -> None:
        self.reqs: list[Any] = []
        self.enable_overlap = overlap
        self.seq_lens_cpu = object() if mirrored else None
        self.round_slots = round_slots
        self.top_ups = self.evictions = 0

    def join(self, prompt: int) -> None:
        kv = ReqKvInfo(kv_committed_len=prompt, kv_allocated_len=prompt)
        self.reqs.append(SimpleNamespace(kv=kv, decode_batch_idx=0))

    def top_up(self) -> None:
        self.top_ups += 1
        self.maybe_evict_swa()
        for each in self.reqs:
            enough = each.kv.kv_committed_len + 2 * self.round_slots
            each.kv.kv_allocated_len = max(each.kv.kv_allocated_len, enough)
            each.decode_batch_idx += 1

    def maybe_evict_swa(self) -> None:
        self.evictions += 1

    def prepare(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(kv_reserve, "_round_slots", lambda: self.round_slots)
            kv_reserve.reserve_when_short(Batch.top_up, self)


STEPS = st.lists(
    st.one_of(
        st.just("plain"), st.just("round"), st.just("leave"), st.integers(1, 300)  # a prompt
    ),
    max_size=60,
)  # fmt: skip


@settings(deadline=None)
@given(round_slots=st.integers(2, 20), steps=STEPS, data=st.data())
def test_a_round_always_has_its_slots(round_slots: int, steps: list[Any], data: Any) -> None:
    batch = Batch(round_slots)
    prepared = 0
    for step in steps:
        if step == "leave":
            batch.reqs = batch.reqs[1:]
        elif isinstance(step, int):
            batch.join(step)
        if not batch.reqs:
            continue
        with pytest.MonkeyPatch.context() as patch:
            batch.prepare(patch)
        prepared += 1
        for each in batch.reqs:
            owned = each.kv.kv_allocated_len - each.kv.kv_committed_len
            assert round_slots <= owned <= 2 * round_slots
            taken = 1 if step == "plain" else data.draw(st.integers(1, round_slots))
            each.kv.kv_committed_len += taken
    assert batch.evictions == prepared
    assert all(1 <= each.decode_batch_idx <= prepared for each in batch.reqs)


def test_plain_steps_ask_once_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(round_slots=6)
    batch.join(100)
    for _ in range(70):
        batch.prepare(monkeypatch)
        batch.reqs[0].kv.kv_committed_len += 1
    assert batch.top_ups == 10  # every seventh step finds five of twelve left
    assert batch.reqs[0].decode_batch_idx == 70


@pytest.mark.parametrize("unknown", [{"overlap": True}, {"mirrored": False}], ids=str)
def test_every_step_where_lengths_are_not_known(
    monkeypatch: pytest.MonkeyPatch, unknown: dict[str, bool]
) -> None:
    batch = Batch(6, **unknown)
    batch.join(100)
    for _ in range(20):
        batch.prepare(monkeypatch)
    assert batch.top_ups == 20
