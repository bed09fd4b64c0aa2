"""The one place that picks an implementation: Triton on a GPU, PyTorch elsewhere.

Importing this never imports Triton; the first call with a CUDA tensor does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch

from respec_kernels.modes import TreeMaskMode


@cache
def implementation(name: str, on_gpu: bool) -> Callable[..., Any]:
    """Return the kernel of this name for a GPU (Triton) or for anything else (PyTorch)."""
    package = "triton" if on_gpu else "reference"
    function: Callable[..., Any] = getattr(import_module(f"respec_kernels.{package}.{name}"), name)
    return function


def build_tree(
    parent_list: torch.Tensor,
    top_scores_index: torch.Tensor,
    seq_lens: torch.Tensor,
    tree_mask: torch.Tensor,
    positions: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    tree_mask_mode: int = TreeMaskMode.FULL_MASK,
) -> None:
    """Turn the drafter's chosen entries into a tree; see ``reference/build_tree.py``."""
    implementation("build_tree", seq_lens.is_cuda)(
        parent_list,
        top_scores_index,
        seq_lens,
        tree_mask,
        positions,
        retrieve_index,
        retrieve_next_token,
        retrieve_next_sibling,
        topk,
        spec_steps,
        num_verify_tokens,
        tree_mask_mode,
    )


def verify_tree(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
    topk: int = -1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Walk every tree along the target's own tokens; see ``reference/verify_tree.py``."""
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = implementation(
        "verify_tree", candidates.is_cuda
    )(
        predicts,
        accept_index,
        accept_token_num,
        candidates,
        retrieve_index,
        retrieve_next_token,
        retrieve_next_sibling,
        target_predict,
        topk,
    )
    return outputs
