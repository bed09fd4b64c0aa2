"""SGLang's tree functions, served by this project's kernels."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

import respec_kernels
from sglang_respec.config import load_config
from sglang_respec.errors import RespecError


@cache
def chosen_kernel(name: str) -> Callable[..., Any]:
    """The kernel of this name in the implementation that the settings ask for."""
    choice = load_config().kernels
    if choice == "triton" and not torch.cuda.is_available():
        raise RespecError(
            "The setting kernels = triton needs a GPU; set --respec-kernels auto or reference."
        )
    if choice == "auto":
        kernel: Callable[..., Any] = getattr(respec_kernels, name)
        return kernel
    return respec_kernels.implementation(name, choice == "triton")


def build_tree_kernel_efficient_func(
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
    tree_mask_mode: int,
) -> None:
    """See `respec_kernels.build_tree`; the arguments are SGLang's, in its order."""
    chosen_kernel("build_tree")(
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
        respec_kernels.TreeMaskMode(int(tree_mask_mode)),
    )


def verify_tree_greedy_func(
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
    """See `respec_kernels.verify_tree`; returns the three tensors it wrote, as SGLang does."""
    chosen_kernel("verify_tree")(
        predicts,
        accept_index,
        accept_token_num,
        candidates.to(torch.int64),  # SGLang's zero-step verify brings int32
        retrieve_index,
        retrieve_next_token,
        retrieve_next_sibling,
        target_predict,
        topk,
    )
    return predicts, accept_index, accept_token_num
