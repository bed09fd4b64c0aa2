"""What a verification returns, whatever the implementation."""

from __future__ import annotations

from typing import NamedTuple

import torch


class VerifiedTrees(NamedTuple):
    """What one verification commits, for B trees of n nodes."""

    predicts: torch.Tensor  # [B * n] i32, the committed token at each visited node, else 0
    accept_index: torch.Tensor  # [B, max_depth] i32, rows of the visited nodes in order, then -1
    accept_token_num: torch.Tensor  # [B] i32, visited nodes without the root
    logprobs: torch.Tensor  # [B, max_depth] f32, of the committed tokens, else 0; never NaN
    row_failed: torch.Tensor  # [B] bool: a visited row was unusable; its token is 0
