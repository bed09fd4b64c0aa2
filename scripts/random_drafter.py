"""A drafter of the right shapes that knows nothing: what speculation must survive unchanged."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MAPS = ("d2t", "t2d")


def write_random_drafter(source: Path, directory: Path, seed: int = 0) -> Path:
    """A copy of the drafter in ``source`` with random weights; its vocabulary maps stay."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "config.json", directory / "config.json")
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: tensor if name in MAPS else _random_like(name, tensor, generator)
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    save_file(weights, directory / "model.safetensors")
    return directory


def _random_like(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if "norm" in name:
        return torch.ones_like(tensor)
    scale = tensor.shape[-1] ** -0.5  # outputs stay about as large as inputs
    noise = torch.randn(tensor.shape, generator=generator) * scale
    return noise.to(tensor.dtype)
