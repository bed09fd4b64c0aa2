"""Files to push: the bundled drafter as it is, worse, and as other tools write it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save

from respec_server.bundled import demo_models

TRAINED = demo_models()[1] / "model.safetensors"


def tensors() -> dict[str, torch.Tensor]:
    """The bundled drafter's, under the names of its file."""
    return load_file(TRAINED)


def trained() -> bytes:
    return Path(TRAINED).read_bytes()


def degraded(seed: int = 0) -> bytes:
    """The same with a head of noise: it drafts nonsense."""
    changed = tensors()
    generator = torch.Generator().manual_seed(seed)
    head = changed["lm_head.weight"]
    noise = torch.randn(head.shape, generator=generator) * head.float().std()
    changed["lm_head.weight"] = noise.to(head.dtype)
    return save(changed)


def specforge() -> bytes:
    """SpecForge's layout, and a float32 master copy of a trainer."""
    return save(
        {
            name.removeprefix("model.").replace("layers.0.", "midlayer."): each.float()
            if each.is_floating_point()
            else each
            for name, each in tensors().items()
        }
    )


def speculators() -> bytes:
    """The layout of `speculators`: layers counted, with the target's tensors beside its own."""
    renamed = {name.replace("midlayer.", "layers.0."): each for name, each in tensors().items()}
    nan = torch.full((512, 192), float("nan"))
    return save(
        {
            **renamed,
            "embed_tokens.weight": nan,
            "verifier_lm_head.weight": nan.clone(),
            "verifier_norm.weight": nan[0].clone(),
        }
    )
