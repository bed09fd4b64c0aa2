"""What both implementations of the sampling kernels assume, checked before the launch.

Only what the host knows: shapes, dtypes, strides, plain integers. Ranges of temperatures and
filters are the caller's: looking at them would wait for the device.
"""

from __future__ import annotations

import torch

from respec_kernels.checks import expect
from respec_kernels.modes import MAX_NODES

MAX_VOCABULARY = 1 << 24  # ids and ranks stay exact in every type they pass through
MAX_TOPK = 16
LOGIT_TYPES = (torch.float32, torch.bfloat16)


def check_logits(logits: torch.Tensor) -> None:
    """Raise ``ValueError`` unless ``[rows, vocabulary]`` f32 or bf16, last dimension contiguous."""
    if logits.dim() != 2 or not 1 <= logits.shape[1] <= MAX_VOCABULARY:
        raise ValueError(
            f"logits must be [rows, vocabulary], got {list(logits.shape)}: reshape them; a "
            f"vocabulary holds 1 to {MAX_VOCABULARY} tokens."
        )
    if logits.dtype not in LOGIT_TYPES:
        raise ValueError(f"logits must be float32 or bfloat16, got {logits.dtype}: cast them.")
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError("logits must be contiguous within a row: pass logits.contiguous().")


def check_rows(
    logits: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor | None,
    batch: int,
) -> int:
    """Check the row arguments; return the rows per request, 0 where ``requests`` names them."""
    check_logits(logits)
    rows, device = logits.shape[0], logits.device
    expect("positions", positions, (rows,), torch.int64, device)
    if requests is not None:
        expect("requests", requests, (rows,), torch.int64, device)
        return 0
    if batch == 0 or rows % batch:
        if rows == batch == 0:
            return 1
        raise ValueError(
            f"{rows} rows cannot be shared out evenly among {batch} requests: pass requests."
        )
    return rows // batch


def check_sample_rows(
    logits: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor | None,
    temperatures: torch.Tensor,
    top_ks: torch.Tensor,
    top_ps: torch.Tensor,
    min_ps: torch.Tensor,
    seeds: torch.Tensor,
    live: torch.Tensor | None,
    tokens: torch.Tensor | None,
    logprobs: torch.Tensor | None,
) -> tuple[int, int]:
    """Check the arguments of ``sample_rows``; return outputs and rows per request (or 0)."""
    batch = temperatures.shape[0]
    per_request = check_rows(logits, positions, requests, batch)
    device = logits.device
    _check_parameters(temperatures, top_ks, seeds, batch, device)
    expect("top_ps", top_ps, (batch,), torch.float32, device)
    expect("min_ps", min_ps, (batch,), torch.float32, device)
    outputs = logits.shape[0]
    if live is not None:
        outputs = live.shape[0]
        expect("live", live, (outputs,), torch.int64, device)
    if tokens is not None:
        expect("tokens", tokens, (outputs,), torch.int64, device)
    if logprobs is not None:
        expect("logprobs", logprobs, (outputs,), torch.float32, device)
    return outputs, per_request


def check_draft_topk(
    logits: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor | None,
    temperatures: torch.Tensor,
    top_ks: torch.Tensor,
    seeds: torch.Tensor,
    token_map: torch.Tensor | None,
    k: int,
) -> int:
    """Check the arguments of ``draft_topk``; return the rows per request (or 0)."""
    batch = temperatures.shape[0]
    per_request = check_rows(logits, positions, requests, batch)
    _check_parameters(temperatures, top_ks, seeds, batch, logits.device)
    if token_map is not None:
        expect("token_map", token_map, (logits.shape[1],), torch.int64, logits.device)
    if not 1 <= k <= min(MAX_TOPK, logits.shape[1]):
        raise ValueError(
            f"k is {k}: use 1 to {MAX_TOPK} candidates, and no more than the "
            f"{logits.shape[1]} tokens of the draft vocabulary."
        )
    return per_request


def check_verify_sampled_tree(
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
    max_depth: int,
    schedule: str,
    root_only: torch.Tensor | None,
) -> tuple[int, int]:
    """Check the arguments of ``verify_sampled_tree``; return batch and nodes."""
    if candidates.dim() != 2:
        raise ValueError(
            f"candidates must be [batch, nodes], got {list(candidates.shape)}: reshape them."
        )
    (batch, n), device = candidates.shape, candidates.device
    if not 1 <= n <= MAX_NODES or max_depth < 1:
        raise ValueError(
            f"{n} nodes and a depth of {max_depth}: use 1 to {MAX_NODES} nodes per request and a "
            "depth of at least 1 (the root)."
        )
    if schedule not in ("auto", "nodes", "levels"):
        raise ValueError(f"schedule is {schedule!r}: use 'auto', 'nodes' or 'levels'.")
    check_logits(logits)
    if logits.shape[0] != batch * n or logits.device != device:
        raise ValueError(
            f"logits has {logits.shape[0]} rows on {logits.device}, {batch} trees of {n} nodes "
            f"on {device} need {batch * n}: pass one row per node."
        )
    expect("positions", positions, (batch * n,), torch.int64, device)
    for name, links in (
        ("candidates", candidates),
        ("retrieve_index", retrieve_index),
        ("retrieve_next_token", retrieve_next_token),
        ("retrieve_next_sibling", retrieve_next_sibling),
    ):
        expect(name, links, (batch, n), torch.int64, device)
    _check_parameters(temperatures, top_ks, seeds, batch, device)
    expect("top_ps", top_ps, (batch,), torch.float32, device)
    expect("min_ps", min_ps, (batch,), torch.float32, device)
    if root_only is not None:
        expect("root_only", root_only, (batch,), torch.bool, device)
    return batch, n


def _check_parameters(
    temperatures: torch.Tensor,
    top_ks: torch.Tensor,
    seeds: torch.Tensor,
    batch: int,
    device: torch.device,
) -> None:
    expect("temperatures", temperatures, (batch,), torch.float32, device)
    expect("top_ks", top_ks, (batch,), torch.int32, device)
    expect("seeds", seeds, (batch,), torch.int64, device)
