"""Any rollout is covered once by its windows; any bytes are a chunk or one sentence."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_toys import markov_rollout

from sglang_respec.learner.acceptance import _own_rows
from sglang_respec.learner.batches import context_of, windows
from sglang_respec.learner.chunk import encode_chunk, read_chunk
from sglang_respec.learner.chunk_format import BadChunk
from sglang_respec.learner.samples import RolloutSample

CHUNK = encode_chunk([markov_rollout(1), markov_rollout(2, tokens=12)])


@st.composite
def shapes(draw: st.DrawFn) -> RolloutSample:
    prompt = draw(st.integers(1, 60))
    total = prompt + draw(st.integers(1, 120))
    first = draw(st.integers(0, prompt - 1))
    empty = torch.zeros(total - prompt, 1)
    return RolloutSample(
        "r", prompt, torch.zeros(total, dtype=torch.int32), first,
        torch.zeros(total - 1 - first, 3), empty.int(), empty, empty[:, 0], 0, 1.0, 0, 0,
    )  # fmt: skip


@given(shapes(), st.integers(8, 80))
def test_every_generated_token_is_scored_once(sample: RolloutSample, size: int) -> None:
    parts = list(windows(sample, size))
    rows = [row for part in parts for row in part.scored_rows]
    assert rows == list(range(sample.prompt_tokens - 1, len(sample.tokens) - 1))
    for part in parts:
        assert sample.first_aux <= part.begin < part.end <= len(sample.tokens)
        assert len(part) <= size


@given(shapes(), st.integers(8, 80))
def test_every_row_a_chain_starts_from_has_one_judge(sample: RolloutSample, size: int) -> None:
    parts = list(windows(sample, size))
    owned = [row for part in parts for row in _own_rows(part, context_of(size))]
    assert owned == list(range(parts[0].begin, len(sample.tokens)))
    assert parts[0].begin <= sample.prompt_tokens - 1


@given(st.data())
def test_a_damaged_chunk_is_read_or_refused(data: st.DataObject) -> None:
    body = bytearray(CHUNK)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(body))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chunk"
        path.write_bytes(bytes(body)[:cut])
        try:
            samples = read_chunk(path)
        except BadChunk as error:
            samples, refusal = [], str(error)
        else:
            refusal = ""
    assert bool(samples) != bool(refusal)
    assert "\n" not in refusal
    for sample in samples:
        assert len(sample.aux) == len(sample.tokens) - 1 - sample.first_aux
        assert len(sample.tail_mass) == sample.generated_tokens
