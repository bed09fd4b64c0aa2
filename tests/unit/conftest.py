"""Small checkpoints on disk for tests: a config.json and a safetensors file of zeros."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ITEM_BYTES = {"BF16": 2, "F32": 4, "I64": 8, "I32": 4, "U8": 1}

TARGET = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 32,
    "vocab_size": 100,
    "num_hidden_layers": 8,
}
DRAFTER = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "hidden_size": 32,
    "vocab_size": 100,
    "draft_vocab_size": 40,
    "num_hidden_layers": 1,
}


def write_safetensors(
    path: Path, shapes: dict[str, tuple[str, tuple[int, ...]]], data: dict[str, bytes] | None = None
) -> None:
    """Write zeros, or the given bytes, for each ``name: (dtype, shape)``."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (dtype, shape) in shapes.items():
        blob = (data or {}).get(name, b"\0" * (math.prod(shape) * ITEM_BYTES[dtype]))
        offsets = [len(body), len(body) + len(blob)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        body += blob
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _drafter_shapes(config: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    width = config.get("target_hidden_size") or config["hidden_size"]
    ids = (config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids") or [0, 1, 2]
    aux = config.get("num_aux_hidden_states") or len(ids)
    rows = config.get("draft_vocab_size") or config["vocab_size"]
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "fc.weight": ("BF16", (config["hidden_size"], aux * width)),
        "embed_tokens.weight": ("BF16", (config["vocab_size"], config["hidden_size"])),
        "lm_head.weight": ("BF16", (rows, config["hidden_size"])),
        "midlayer.hidden_norm.weight": ("BF16", (config["hidden_size"],)),
    }
    if rows != config["vocab_size"]:
        shapes["d2t"] = ("I64", (rows,))
    return shapes


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


@pytest.fixture
def make_target(tmp_path: Path) -> Callable[..., Path]:
    """Write a target's config.json with some values changed; None removes one."""

    def make(name: str = "target", **changes: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(_merged(TARGET, changes)))
        return directory

    return make


@pytest.fixture
def make_drafter(tmp_path: Path) -> Callable[..., Path]:
    """Write a drafter that fits ``make_target()``, with config values changed, tensors dropped,
    shapes replaced, or the d2t map given."""

    def make(
        name: str = "drafter",
        *,
        drop: tuple[str, ...] = (),
        shapes: dict[str, tuple[str, tuple[int, ...]]] | None = None,
        d2t: list[int] | None = None,
        **changes: Any,
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        config = _merged(DRAFTER, changes)
        (directory / "config.json").write_text(json.dumps(config))
        tensors = {**_drafter_shapes(config), **(shapes or {})}
        data = {}
        if d2t is not None:
            tensors["d2t"] = ("I64", (len(d2t),))
            data["d2t"] = struct.pack(f"<{len(d2t)}q", *d2t)
        kept = {each: tensors[each] for each in tensors if each not in drop}
        write_safetensors(directory / "model.safetensors", kept, data)
        return directory

    return make
