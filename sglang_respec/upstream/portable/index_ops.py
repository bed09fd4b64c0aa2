"""PyTorch versions of the index functions that SGLang launches as Triton kernels.

Same names, arguments and in-place results as the functions they stand in for; each is a
few vectorised calls, with no loop over requests. Shapes: B requests, n verify nodes.
"""

import numpy as np
import torch
from numpy.typing import NDArray


def slots_at(
    req_to_token: torch.Tensor,  # [max_reqs, max_context] i32
    req_pool_indices: torch.Tensor,  # [B]
    starts: torch.Tensor,  # [B]
    count: int,
) -> torch.Tensor:
    """[B, count] i64: each request's `count` slots from position `starts` on."""
    columns = starts.to(torch.int64)[:, None] + torch.arange(count, device=starts.device)
    return req_to_token[req_pool_indices.to(torch.int64)[:, None], columns].to(torch.int64)


def assign_draft_cache_locs_contiguous_func(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,  # [B * topk * num_cols] i64, written
    topk: int,
    num_cols: int,
    positions: torch.Tensor | None = None,  # [B * topk] i64, written
    mrope: torch.Tensor | None = None,  # [3, B * topk] i64, written
) -> None:
    """The `topk * num_cols` slots after each request's committed tokens."""
    out_cache_loc.copy_(
        slots_at(req_to_token, req_pool_indices, seq_lens, topk * num_cols).reshape(-1)
    )
    if positions is not None:
        positions.view(-1, topk).copy_(seq_lens[:, None])
    if mrope is not None:
        mrope.view(3, -1, topk).copy_(seq_lens[:, None])


def speculative_cache_locs(
    *,
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    batch_size: int,
    draft_token_num: int,
    device: torch.device | str,
) -> torch.Tensor:
    """[B * n] i64: the slots of the verify window of each request, n slots wide."""
    return slots_at(req_to_token, req_pool_indices, start_offset, draft_token_num).reshape(-1)


def assign_req_to_token_pool_func(
    req_pool_indices: torch.Tensor,  # [B]
    req_to_token: torch.Tensor,  # [max_reqs, max_context] i32, written
    start_offset: torch.Tensor,  # [B]
    end_offset: torch.Tensor,  # [B]
    out_cache_loc: torch.Tensor,  # [sum(end - start)]
    batch_size: int,
) -> None:
    """Writes freshly allocated slots into positions [start, end) of each request's row.

    In NumPy on the tensors' own memory: it runs in every decode step, for a handful of numbers,
    where each PyTorch operation costs more than the work.
    """
    first, last = start_offset.numpy(), end_offset.numpy()
    lens = last - first
    if out_cache_loc.shape[0] == batch_size and (lens == 1).all():  # as after plain steps
        req_to_token.numpy()[req_pool_indices.numpy(), first] = out_cache_loc.numpy()
        return
    request: NDArray[np.int64] = np.repeat(req_pool_indices.numpy(), lens)
    column = np.repeat(first - (np.cumsum(lens) - lens), lens) + np.arange(request.size)
    req_to_token.numpy()[request, column] = out_cache_loc.numpy()[: request.size]


def fill_bonus_tokens_func(
    accept_tokens: torch.Tensor,  # [B, depth] or flat
    accept_lens: torch.Tensor,  # [B] i32, bonus included
    bonus_tokens: torch.Tensor,  # [B] i32, written
    accept_stride: int,
    batch_size: int,
) -> None:
    """The last committed token of each request: the root of its next tree."""
    last = (accept_lens.to(torch.int64) - 1)[:, None]
    tokens = accept_tokens.view(batch_size, accept_stride)
    bonus_tokens.copy_(torch.gather(tokens, 1, last).flatten())


def fill_accept_out_cache_loc_func(
    accept_index: torch.Tensor,  # [B * depth] i32, -1 where nothing was accepted
    out_cache_loc: torch.Tensor,  # [B * n]
    accept_out_cache_loc: torch.Tensor,  # [size] i64, written from the front
    size: int,
) -> None:
    """Packs the slots of accepted nodes to the front, in order."""
    accepted = accept_index.flatten()[:size]
    accepted = accepted[accepted >= 0].to(torch.int64)
    accept_out_cache_loc[: accepted.shape[0]] = out_cache_loc[accepted]


def fill_front_out_cache_loc_func(
    num_front: torch.Tensor,  # [B]
    out_cache_loc: torch.Tensor,  # [B * n]
    front_out_cache_loc: torch.Tensor,  # [size] i64, written from the front
) -> None:
    """Packs the first `num_front[i]` slots of request i's window, in order."""
    window = out_cache_loc.view(num_front.shape[0], -1)
    columns = torch.arange(window.shape[1], device=window.device)
    packed = window[columns < num_front[:, None]]
    front_out_cache_loc[: packed.shape[0]] = packed


def get_last_loc(
    req_to_token: torch.Tensor,  # [max_reqs, max_context] i32
    req_pool_indices_tensor: torch.Tensor,  # [B]
    prefix_lens_tensor: torch.Tensor,  # [B] i64
) -> torch.Tensor:
    """[B] i64: the slot of each request's last prefix token, -1 where there is none."""
    last = req_to_token[req_pool_indices_tensor, (prefix_lens_tensor - 1).clamp(min=0)]
    return torch.where(prefix_lens_tensor > 0, last, torch.full_like(prefix_lens_tensor, -1))
