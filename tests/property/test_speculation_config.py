"""SpeculationConfig over its whole range."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_respec.core import SpeculationConfig
from sglang_respec.errors import RespecError


@st.composite
def valid(draw):
    steps = draw(st.integers(1, 16))
    topk = draw(st.integers(1, 8))
    size = 1 + topk + (steps - 1) * topk * topk
    nodes = size if topk == 1 else draw(st.integers(2, size))
    return SpeculationConfig(steps, topk, nodes)


@given(valid())
def test_text_round_trip(config):
    assert SpeculationConfig.parse(str(config)) == config


@given(valid())
def test_a_round_verifies_at_most_the_tree(config):
    assert 2 <= config.num_draft_tokens <= config.tree_size
    assert not config.is_plain


@given(st.integers(-3, 20), st.integers(-3, 10), st.integers(-3, 400))
def test_every_triple_is_accepted_or_refused_with_a_sentence(steps, topk, nodes):
    refusal = ""
    try:
        SpeculationConfig(steps, topk, nodes)
    except RespecError as error:
        refusal = str(error)
    if refusal:
        assert refusal.endswith(".")
    else:
        assert str(SpeculationConfig.parse(f"{steps},{topk},{nodes}")) == f"{steps},{topk},{nodes}"


@given(st.text(max_size=20))
def test_any_text_parses_or_says_how(text):
    try:
        config = SpeculationConfig.parse(text)
    except RespecError:
        return
    assert SpeculationConfig.parse(str(config)) == config


@given(valid(), st.integers(1, 50))
def test_no_round_verifies_more_than_it_drafts(config, extra):
    with pytest.raises(RespecError):
        SpeculationConfig(config.num_steps, config.topk, config.tree_size + extra)
