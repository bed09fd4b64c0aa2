"""SpeculationConfig: what is a speculation round and what is not."""

from __future__ import annotations

import dataclasses

import pytest

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.errors import RespecError


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("5,1,6", SpeculationConfig(5, 1, 6)),
        (" 3 , 4 , 16 ", SpeculationConfig(3, 4, 16)),
        ("1,1,2", SpeculationConfig(1, 1, 2)),
        ("plain", PLAIN),
        ("PLAIN", PLAIN),
        ("0,1,1", PLAIN),
    ],
)
def test_parse(text, config):
    assert SpeculationConfig.parse(text) == config


@pytest.mark.parametrize("text", ["", "5", "5,1", "5,1,6,7", "a,b,c", "5;1;6", "1.5,1,2"])
def test_parse_says_what_it_reads(text):
    with pytest.raises(RespecError, match="steps,topk,draft_tokens"):
        SpeculationConfig.parse(text)


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((-1, 1, 2), "1 or more"),
        ((3, 0, 4), "1 or more"),
        ((3, 1, 1), "2 or more"),
        ((3, 1, 3), r"num_steps \+ 1 = 4"),
        ((3, 1, 5), "4 or less"),
        ((2, 2, 8), "7 or less"),
        ((0, 1, 2), "0,1,1"),
        ((0, 2, 1), "0,1,1"),
    ],
)
def test_impossible_rounds(numbers, match):
    with pytest.raises(RespecError, match=match):
        SpeculationConfig(*numbers)


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_only_integers(value):
    with pytest.raises(RespecError, match="integer"):
        SpeculationConfig(value, 1, 2)


@pytest.mark.parametrize(
    ("config", "size"),
    [(PLAIN, 1), (SpeculationConfig(4, 1, 5), 5), (SpeculationConfig(3, 2, 4), 11)],
)
def test_tree_size(config, size):
    assert config.tree_size == size


def test_plain_is_the_only_plain_one():
    assert PLAIN.is_plain
    assert not SpeculationConfig(1, 1, 2).is_plain


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.topk = 2  # type: ignore[misc]
