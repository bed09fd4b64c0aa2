"""Drafters to push: the bundled one, versions of it that draft nonsense, and damaged ones."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from respec_server.bundled import demo_models

TRAINED = Path(demo_models()[1]) / "model.safetensors"
Tensors = dict[str, torch.Tensor]


def trained() -> bytes:
    return TRAINED.read_bytes()


def random_head(seed: int) -> bytes:
    """The bundled drafter with a head of noise."""
    tensors = load_file(TRAINED)
    generator = torch.Generator().manual_seed(seed)
    head = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = (0.1 * torch.randn(head.shape, generator=generator)).to(head.dtype)
    return save(tensors)


def _with(change: Callable[[Tensors, str, random.Random], None]) -> Callable[..., bytes]:
    """A file in which one tensor is changed."""

    def make(rng: random.Random) -> bytes:
        tensors = load_file(TRAINED)
        change(tensors, rng.choice([name for name in tensors if name != "t2d"]), rng)
        return save(tensors)

    return make


def _drop(tensors: Tensors, name: str, _: random.Random) -> None:
    del tensors[name]


def _add(tensors: Tensors, name: str, _: random.Random) -> None:
    tensors[f"{name}.more"] = torch.zeros(3)


def _reshape(tensors: Tensors, name: str, rng: random.Random) -> None:
    tensors[name] = torch.zeros(
        [max(1, each + rng.choice((-1, 1))) for each in tensors[name].shape],
        dtype=tensors[name].dtype,
    )


def _retype(tensors: Tensors, name: str, rng: random.Random) -> None:
    kinds = [torch.float64, torch.int8, torch.int16, torch.bool]
    tensors[name] = tensors[name].to(rng.choice(kinds))


def _poison(tensors: Tensors, name: str, rng: random.Random) -> None:
    if name == "d2t":
        tensors[name] = tensors[name] + 100_000
        return
    values = tensors[name].flatten()
    values[rng.randrange(len(values))] = rng.choice((float("nan"), float("inf")))
    tensors[name] = values.view(tensors[name].shape)


def _cut(rng: random.Random) -> bytes:
    content = trained()
    return content[: rng.randrange(len(content))]


def _flip_header(rng: random.Random) -> bytes:
    content = bytearray(trained())
    length = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(length)] ^= 1 << rng.randrange(8)
    return bytes(content)


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(2000))


BAD: dict[str, Callable[[random.Random], bytes]] = {
    "missing": _with(_drop), "extra": _with(_add), "shape": _with(_reshape),
    "type": _with(_retype), "values": _with(_poison), "cut": _cut, "header": _flip_header,
    "noise": _noise,
}  # fmt: skip
