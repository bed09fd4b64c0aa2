"""Chunks come back as they were, or are refused in one sentence; the spool keeps its budget."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from learner_toys import markov_rollout
from safetensors.torch import load, save

from sglang_respec.learner.chunk import encode_chunk, read_chunk
from sglang_respec.learner.chunk_format import BadChunk, check_header
from sglang_respec.learner.samples import RolloutSample
from sglang_respec.learner.sources import SpoolSource
from sglang_respec.learner.spool import Spool


def rollouts(count: int = 3) -> list[RolloutSample]:
    return [
        markov_rollout(i, prompt_tokens=4 + i, tokens=12 + 3 * i, first_aux=i, temperature=0.5 * i)
        for i in range(count)
    ]


def same(left: RolloutSample, right: RolloutSample) -> None:
    for field in fields(RolloutSample):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype, field.name
            assert torch.equal(a, b), field.name
        else:
            assert a == b, field.name


def test_a_chunk_comes_back_as_it_was(tmp_path: Path) -> None:
    samples = rollouts()
    (tmp_path / "c").write_bytes(encode_chunk(samples))
    found = read_chunk(tmp_path / "c")
    for before, after in zip(samples, found, strict=True):
        same(before, after)
    # A rollout owns its memory: keeping one must not keep the chunk.
    assert found[0].tokens.untyped_storage().nbytes() == found[0].tokens.numel() * 4


def test_hidden_states_keep_their_type(tmp_path: Path) -> None:
    sample = markov_rollout(0)
    (tmp_path / "c").write_bytes(encode_chunk([replace(sample, aux=sample.aux.bfloat16())]))
    assert read_chunk(tmp_path / "c")[0].aux.dtype == torch.bfloat16


def altered(tmp_path: Path, **changes: object) -> Path:
    tensors = load(encode_chunk(rollouts()))
    for name, change in changes.items():
        if change is None:
            del tensors[name]
        else:
            tensors[name] = change(tensors[name]) if callable(change) else change
    path = tmp_path / "chunk"
    path.write_bytes(save(tensors))
    return path


def put(index: int, value: float):
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[index] = value
        return tensor

    return change


HEADER_FAULTS = {
    "missing": ({"seeds": None}, "missing .'seeds'"),
    "unknown": ({"extra": torch.zeros(1)}, "unknown .'extra'"),
    "type": ({"tokens": lambda t: t.long()}, "tokens is I64"),
    "dimensions": ({"aux": lambda t: t.flatten()}, "aux is F32 with 1"),
    "version": ({"format": put(0, 2)}, "format 2"),
    "per rollout": ({"seeds": lambda t: t[:-1].clone()}, "contradict"),
    "listed": ({"tail_mass": lambda t: t[:-1].clone()}, "contradict"),
}
VALUE_FAULTS = {
    "counts": ({"token_counts": put(0, 13)}, "disagree"),
    "prompt": ({"prompt_counts": put(1, 99)}, "must hold"),
    "no answer": ({"prompt_counts": put(0, 12)}, "must hold"),
    "first aux": ({"first_aux": put(2, 6)}, "must hold"),
    "negative token": ({"tokens": put(3, -1)}, "negative ids"),
    "repeated listing": ({"top_ids": lambda t: torch.zeros_like(t)}, "repeated ids"),
    "nan state": ({"aux": put(5, float("nan"))}, "NaN or infinity"),
    "positive logprob": ({"top_logprobs": put(0, 0.5)}, "positive"),
    "nan logprob": ({"top_logprobs": put(0, float("nan"))}, "NaN"),
    "tail": ({"tail_mass": put(0, -0.1)}, "within 0 and 1"),
    "mass": ({"tail_mass": lambda t: torch.full_like(t, 0.99)}, "add up to 1"),
    "temperature": ({"temperatures": put(0, -1.0)}, "temperatures"),
    "version number": ({"policy_versions": put(0, -1)}, "version is negative"),
    "ids": ({"request_ids": torch.tensor(list(b"[1, 2, 3]"), dtype=torch.uint8)}, "texts"),
    "twin ids": (
        {"request_ids": torch.tensor(list(json.dumps(["a"] * 3).encode()), dtype=torch.uint8)},
        "different texts",
    ),
    "no json": ({"request_ids": torch.tensor([255, 1], dtype=torch.uint8)}, "not JSON"),
}


@pytest.mark.parametrize(("changes", "words"), HEADER_FAULTS.values(), ids=HEADER_FAULTS)
def test_a_wrong_header_is_refused_before_values_are_read(
    tmp_path: Path, changes: dict, words: str
) -> None:
    with pytest.raises(BadChunk, match=words) as caught:
        check_header(altered(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "words"), VALUE_FAULTS.values(), ids=VALUE_FAULTS)
def test_wrong_values_are_refused(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(BadChunk, match=words):
        read_chunk(altered(tmp_path, **changes))


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_cut_file_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "c").write_bytes(encode_chunk(rollouts())[:cut])
    with pytest.raises(BadChunk, match="no chunk of rollouts"):
        read_chunk(tmp_path / "c")


def test_a_writer_s_mistake_is_refused() -> None:
    good = markov_rollout(0)
    for bad in (
        [],
        [replace(good, first_aux=3)],
        [replace(good, tail_mass=good.tail_mass[:-1])],
        [good, replace(markov_rollout(1), aux=good.aux.half())],
        [good, good],
        [replace(good, request_id="")],
    ):
        with pytest.raises(BadChunk):
            encode_chunk(bad)


def test_the_spool_is_first_in_first_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1 << 20)
    for i in range(3):
        spool.add(encode_chunk([markov_rollout(i)]))
    source = SpoolSource(spool)
    assert [[s.request_id for s in source.read()] for _ in range(4)] == [["r0"], ["r1"], ["r2"], []]
    assert list(tmp_path.iterdir()) == []
    assert source.counters()["chunks_read"] == 3


def test_the_oldest_are_dropped_beyond_the_budget_and_counted(tmp_path: Path) -> None:
    chunk = encode_chunk([markov_rollout(0)])
    spool = Spool(tmp_path, 2 * len(chunk))
    for i in range(5):
        spool.add(encode_chunk([markov_rollout(i)]))
    source = SpoolSource(spool)
    assert source.read()[0].request_id == "r3"
    assert source.counters()["chunks_dropped"] == 3


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1 << 20)

    def write() -> None:
        with spool.incoming() as path:
            path.write_bytes(b"half")
            assert spool.waiting() == []
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_bad_chunk_is_left_out_and_the_next_one_is_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1 << 20)
    spool.add(b"nothing")
    spool.add(encode_chunk([markov_rollout(1)]))
    source = SpoolSource(spool)
    assert source.read() == []
    assert source.read()[0].request_id == "r1"
    assert source.counters()["chunks_bad"] == 1
