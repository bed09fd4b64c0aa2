"""The seeded hash against MurmurHash3 over bytes, and against SGLang's own Triton kernel."""

import importlib.util
import random
import struct
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_respec.sampling.noise import murmur_hash32

KERNEL_FILE = "kernels/ops/sampling/murmur_hash.py"
EDGES = [0, 1, 2**31 - 1, 2**31, 2**32 - 1]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def murmur3_x86_32(data: bytes) -> int:
    """Appleby's MurmurHash3 with seed 0, of whole 4-byte blocks."""
    word, state = 0xFFFFFFFF, 0
    for (block,) in struct.iter_unpack("<I", data):
        mixed = block * 0xCC9E2D51 & word
        mixed = (mixed << 15 | mixed >> 17) & word
        state ^= mixed * 0x1B873593 & word
        state = (state << 13 | state >> 19) & word
        state = (state * 5 + 0xE6546B64) & word
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & word
    return state ^ state >> 16


def hashed(seeds: list[int], positions: list[int], ids: list[int]) -> list[list[int]]:
    table = murmur_hash32(
        torch.tensor(seeds, dtype=torch.int64), torch.tensor(positions), torch.tensor(ids)
    )
    assert table.dtype == torch.uint32
    return table.tolist()


def test_the_judge_knows_the_published_value() -> None:
    assert murmur3_x86_32(b"test") == 0xBA6BD213


seeds = st.integers(-(2**63), 2**63 - 1)
words = st.sampled_from(EDGES) | st.integers(0, 2**32 - 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(seeds, words), min_size=1, max_size=4), st.lists(words, max_size=5))
def test_it_is_murmur3_of_seed_position_and_token(
    rows: list[tuple[int, int]], ids: list[int]
) -> None:
    """16 bytes, little endian: the seed in 8, the position in 4, the token id in 4."""
    got = hashed([seed for seed, _ in rows], [position for _, position in rows], ids)
    assert got == [
        [murmur3_x86_32(struct.pack("<qII", *row, each)) for each in ids] for row in rows
    ]


@pytest.fixture(scope="module")
def upstream() -> ModuleType:
    """The file of SGLang's kernel by itself: it needs torch and triton, SGLang takes long."""
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.origin is not None
    spec = importlib.util.spec_from_file_location(
        "murmur_hash_kernel", Path(package.origin).parent / KERNEL_FILE
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed_dtype", [torch.int64, torch.uint64], ids=str)
def test_it_is_the_kernel_of_sglang(upstream: ModuleType, seed_dtype: torch.dtype) -> None:
    draw = random.Random(5)
    seeds = [-1, -(2**63), *EDGES, *(draw.getrandbits(63) for _ in range(40))]
    positions = [draw.getrandbits(31) for _ in seeds[5:]] + EDGES
    ids = torch.tensor(EDGES + [draw.getrandbits(18) for _ in range(1100)])  # two blocks
    seed = torch.tensor(seeds).to(seed_dtype)
    position = torch.tensor(positions)
    kernel_out = torch.zeros(len(seeds), len(ids), dtype=torch.uint32, device=DEVICE)
    upstream.murmur_hash32_kernel[(len(seeds), 2)](
        *(each.to(DEVICE) for each in (seed, position, ids)),
        kernel_out, len(seeds), len(ids), BLOCK_SIZE=1024,
    )  # fmt: skip
    ours = murmur_hash32(seed, position, ids)
    assert torch.equal(ours.to(torch.int64), kernel_out.cpu().to(torch.int64))
