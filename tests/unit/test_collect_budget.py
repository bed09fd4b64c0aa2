"""Which requests are collected: a share of them, within a rate, and never more than room for."""

from __future__ import annotations

import pytest

from sglang_respec.config import RespecConfig
from sglang_respec.errors import RespecError
from sglang_respec.learner.collect_checks import refuse_collecting
from sglang_respec.learner.collect_choice import BURST_S, Chooser


def test_the_share_is_of_ids_and_nested():
    ids = [f"request-{i}" for i in range(4000)]
    chosen = {
        share: {each for each in ids if Chooser(share, 0, 1, 0.0).wants(each)}
        for share in (0.1, 0.5, 1.0)
    }
    # Of 4000 fair draws, five standard deviations.
    assert abs(len(chosen[0.1]) - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5
    assert abs(len(chosen[0.5]) - 2000) < 5 * (4000 * 0.25) ** 0.5
    assert chosen[0.1] < chosen[0.5] < chosen[1.0] == set(ids)


def test_without_a_rate_everybody_enters():
    chooser = Chooser(1.0, 0, 1000, 0.0)
    assert all(chooser.enter(0.0) for _ in range(1000))


def test_the_rate_bounds_what_is_let_in():
    rate, size = 100.0, 200
    chooser = Chooser(1.0, rate, size, 0.0)
    sent = 0
    for second in range(1000):
        while chooser.enter(float(second)):
            chooser.leave(size)
            sent += size
    assert rate * 1000 <= sent <= rate * (1000 + BURST_S) + size


def test_those_under_way_are_reckoned_with():
    chooser = Chooser(1.0, 100.0, 300, 0.0)
    let_in = 0
    while chooser.enter(0.0):
        let_in += 1
    assert let_in == 100 * BURST_S / 300
    chooser.leave(0)  # came to nothing
    assert chooser.enter(0.0)
    assert not chooser.enter(0.0)


def test_sizes_are_learned():
    chooser = Chooser(1.0, 100.0, 1, 0.0)
    for _ in range(100):
        assert chooser.enter(0.0)
        chooser.leave(10)
    let_in = 0
    while chooser.enter(0.0):
        let_in += 1
    assert 500 <= let_in <= 510, "5000 bytes left at nearly 10 each"


@pytest.mark.parametrize(
    "values",
    [
        {"samples_to": "ftp://host/x"},
        {"samples_to": "http://"},
        {"samples_to": "http://host:99999"},
        {"samples_to": "http://host:1/?q=1"},
        {"samples_fraction": 0.0},
        {"samples_fraction": 1.5},
        {"samples_fraction": float("nan")},
        {"samples_top_k": 5000},
        {"samples_top_k": 0},
        {"samples_mb_per_s": -1.0},
        {"samples_buffer_mb": 0},
        {"samples_max_tokens": 1},
    ],
)
def test_settings_that_cannot_be(values):
    with pytest.raises(RespecError, match=next(iter(values))):
        RespecConfig(**values)


@pytest.mark.parametrize("there", ["http://learner:30900", "https://[::1]:3/samples", "folder"])
def test_places_to_send_to(there):
    assert RespecConfig(samples_to=there).samples_to == there


EAGLE3 = {"speculative_algorithm": "EAGLE3"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "--drafter-path"),
        ({"speculative_algorithm": "NGRAM"}, "--drafter-path"),
        ({**EAGLE3, "pp_size": 2}, "--pp-size"),
        ({**EAGLE3, "enable_dp_attention": True}, "--enable-dp-attention"),
    ],
)
def test_servers_that_cannot_collect(options, says):
    with pytest.raises(RespecError, match=says):
        refuse_collecting(options, "folder")
    refuse_collecting(options, "")


def test_servers_that_can():
    refuse_collecting({**EAGLE3, "pp_size": 1, "tp_size": 4}, "folder")
