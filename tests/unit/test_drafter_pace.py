"""Work beside serving takes at most its share of one core, and nothing rests where it may not."""

from __future__ import annotations

import pytest
import torch
from drafter_toys import SCHEMA, make_file, make_live

from sglang_respec.config import RespecConfig
from sglang_respec.drafter import reader, stage, values
from sglang_respec.drafter.pace import SHARE, Pace, rest_s, share_of
from sglang_respec.drafter.reader import read_layout
from sglang_respec.drafter.schema import Declared, match
from sglang_respec.errors import RespecError


class Clock:
    """A core that works one second between two looks, and a bed."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def worked_s(self) -> float:
        self.now += 1.0
        return self.now

    def pace(self, share: float) -> Pace:
        return Pace(share, sleep=self.slept.append, worked_s=self.worked_s)


@pytest.mark.parametrize(("share", "rest"), [(0.5, 1.0), (0.25, 3.0), (0.9, 1 / 9)])
def test_rests_follow_the_work(share, rest):
    clock = Clock()
    pace = clock.pace(share)
    for _ in range(4):
        pace.rest()
    assert clock.slept == pytest.approx([rest] * 3), "the first look only starts the clock"
    assert rest_s(1.0, share) == pytest.approx(rest)


def test_a_whole_core_never_rests():
    clock = Clock()
    pace = clock.pace(1.0)
    pace.rest()
    pace.rest()
    assert clock.slept == []


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan")])
def test_shares_that_are_none(share):
    with pytest.raises(ValueError, match="share"):
        Pace(share)


def test_staging_and_checking_rest_between_their_pieces(tmp_path, monkeypatch):
    for module in (stage, values):
        monkeypatch.setattr(module, "PIECE_BYTES", 16)
    path = tmp_path / "push"
    path.write_bytes(make_file(1.0))
    layout, clock = read_layout(path), Clock()
    weights = stage.stage(
        make_live(),
        stage.tensors_of_file(path, layout, layout, clock.pace(0.5)),
        clock.pace(0.5),
    )
    assert set(weights.parameters["norm"].tolist()) == {1.0}
    pieces = sum(-(-each.nbytes // 16) for each in layout.values())
    assert len(clock.slept) > pieces

    fit = match(SCHEMA, [Declared(each.name, each.dtype, each.shape) for each in layout.values()])
    checking = Clock()
    assert values.value_problems(path, layout, fit, SCHEMA, checking.pace(0.5)) == []
    assert len(checking.slept) >= pieces - len(layout)


def test_a_tensor_read_in_pieces_is_the_same(tmp_path):
    path = tmp_path / "push"
    path.write_bytes(make_file(3.0))
    entry = read_layout(path)["lm_head.weight"]
    rests: list[int] = []
    whole = reader.read_whole(path, entry, 7, lambda: rests.append(1))
    assert torch.frombuffer(whole, dtype=torch.float32).unique().tolist() == [3.0]
    assert len(rests) == -(-entry.nbytes // 7)


def test_a_snapshot_rests_after_each_parameter():
    live, clock = make_live(), Clock()
    live.snapshot(torch.device("cpu"), clock.pace(0.5))
    assert len(clock.slept) == len(live.own) - 1


def test_the_setting():
    assert share_of(RespecConfig().drafter_core_percent) == SHARE
    assert share_of(100) == 1
    assert share_of(400) == 1
    with pytest.raises(RespecError, match="1 or more"):
        RespecConfig(drafter_core_percent=0)
