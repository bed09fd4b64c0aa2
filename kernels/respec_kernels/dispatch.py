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
from respec_kernels.schedule import DEFAULT_ACCEPTED_LENGTH, Schedule
from respec_kernels.verified import VerifiedTrees


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


def sample_rows(
    logits: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor | None,
    temperatures: torch.Tensor,
    top_ks: torch.Tensor,
    top_ps: torch.Tensor,
    min_ps: torch.Tensor,
    seeds: torch.Tensor,
    *,
    filtered: bool,
    greedy: bool = False,
    scored: bool = True,
    live: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    logprobs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each row's token by coupled sampling; see ``reference/sample_rows.py``."""
    outputs: tuple[torch.Tensor, torch.Tensor] = implementation("sample_rows", logits.is_cuda)(
        logits,
        positions,
        requests,
        temperatures,
        top_ks,
        top_ps,
        min_ps,
        seeds,
        filtered=filtered,
        greedy=greedy,
        scored=scored,
        live=live,
        tokens=tokens,
        logprobs=logprobs,
    )
    return outputs


def draft_topk(
    logits: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor | None,
    temperatures: torch.Tensor,
    top_ks: torch.Tensor,
    seeds: torch.Tensor,
    token_map: torch.Tensor | None,
    k: int,
    *,
    greedy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each row's k best draft tokens under the target's noise; see the reference."""
    outputs: tuple[torch.Tensor, torch.Tensor] = implementation("draft_topk", logits.is_cuda)(
        logits,
        positions,
        requests,
        temperatures,
        top_ks,
        seeds,
        token_map,
        k,
        greedy=greedy,
    )
    return outputs


def verify_sampled_tree(
    logits: torch.Tensor,
    positions: torch.Tensor,
    candidates: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    temperatures: torch.Tensor,
    top_ks: torch.Tensor,
    top_ps: torch.Tensor,
    min_ps: torch.Tensor,
    seeds: torch.Tensor,
    *,
    filtered: bool,
    greedy: bool = False,
    max_depth: int,
    schedule: Schedule = "auto",
    root_only: torch.Tensor | None = None,
    accepted_length: float = DEFAULT_ACCEPTED_LENGTH,
) -> VerifiedTrees:
    """Sample the target's tokens and walk every tree along them; see the reference."""
    outputs: VerifiedTrees = implementation("verify_sampled_tree", logits.is_cuda)(
        logits,
        positions,
        candidates,
        retrieve_index,
        retrieve_next_token,
        retrieve_next_sibling,
        temperatures,
        top_ks,
        top_ps,
        min_ps,
        seeds,
        filtered=filtered,
        greedy=greedy,
        max_depth=max_depth,
        schedule=schedule,
        root_only=root_only,
        accepted_length=accepted_length,
    )
    return outputs
