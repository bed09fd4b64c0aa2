"""The optimiser of both demo models: Muon for matrices, AdamW for the rest, one cosine."""

import math
from dataclasses import dataclass

import torch
from demo.muon import StackedMuon
from torch import nn


@dataclass(frozen=True)
class Recipe:
    batch_tokens: int = 2048  # padding included
    learning_rate: float = 2e-3  # AdamW: embeddings, output head, norms, biases
    muon_rate: float = 0.02
    weight_decay: float = 0.05  # Muon's matrices only
    warmup_share: float = 0.04


def make_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_table = "embed_tokens" in name or "lm_head" in name
        (rest if is_table or parameter.ndim != 2 else matrices).append(parameter)
    return [
        StackedMuon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(
            rest, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        ),
    ]


def update(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    done: float,  # share of the training behind us
    recipe: Recipe,
) -> None:
    """One step of every optimiser with the gradients at hand; they are cleared afterwards."""
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, peak in zip(optimizers, (recipe.muon_rate, recipe.learning_rate), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * schedule(done, recipe.warmup_share)
        optimizer.step()
        optimizer.zero_grad()


def schedule(done: float, warmup_share: float) -> float:
    """Linear warm-up, then a cosine down to a twentieth of the peak."""
    if done < warmup_share:
        return (done + 1e-3) / (warmup_share + 1e-3)
    angle = math.pi * (done - warmup_share) / (1 - warmup_share)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(angle))
