"""What both implementations of a kernel assume about their arguments, checked before the launch.

Only what is known on the host without waiting for the device: shapes, dtypes, strides, ranges of
plain integers. A check costs well under a microsecond; a wrong pointer costs a day.
"""

from __future__ import annotations

import torch

from respec_kernels.modes import MAX_NODES, MAX_PACKED_NODES, TreeMaskMode, packed_bytes


def expect(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise ``ValueError``, naming the remedy, unless the tensor is exactly as described."""
    if (
        tensor.dtype is dtype
        and tensor.shape == shape
        and tensor.is_contiguous()
        and tensor.device == device
    ):
        return
    if tensor.dtype is not dtype:
        raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}: pass {name}.to({dtype}).")
    if tensor.shape != shape:
        raise ValueError(
            f"{name} must have shape {list(shape)}, got {list(tensor.shape)}: "
            "batch and node count are those of the first arguments, see the docstring."
        )
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}, the others on {device}: pass {name}.to('{device}')."
        )
    raise ValueError(f"{name} is not contiguous: pass {name}.contiguous().")


def check_build_tree(
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
) -> int:
    """Check the arguments of ``build_tree`` and return the batch size."""
    n = num_verify_tokens
    if not 1 <= n <= MAX_NODES:
        raise ValueError(f"num_verify_tokens is {n}: use 1 to {MAX_NODES} nodes per request.")
    if topk < 1 or spec_steps < 1:
        raise ValueError(f"topk and spec_steps must be 1 or more, got {topk} and {spec_steps}.")
    batch, device, i64 = seq_lens.shape[0], seq_lens.device, torch.int64
    width = topk * (spec_steps - 1) + 1 if spec_steps > 1 else parent_list.shape[-1]
    expect("seq_lens", seq_lens, (batch,), i64, device)
    expect("parent_list", parent_list, (batch, width), i64, device)
    expect("top_scores_index", top_scores_index, (batch, n - 1), i64, device)
    expect("positions", positions, (batch * n,), i64, device)
    expect("retrieve_index", retrieve_index, (batch, n), i64, device)
    expect("retrieve_next_token", retrieve_next_token, (batch, n), i64, device)
    expect("retrieve_next_sibling", retrieve_next_sibling, (batch, n), i64, device)
    _check_tree_mask(tree_mask, batch, n, tree_mask_mode, device)
    return batch


def _check_tree_mask(
    tree_mask: torch.Tensor, batch: int, n: int, mode: int, device: torch.device
) -> None:
    if tree_mask.dim() != 1 or not tree_mask.is_contiguous() or tree_mask.device != device:
        raise ValueError(
            f"tree_mask must be one flat contiguous buffer on {device}, got shape "
            f"{list(tree_mask.shape)} on {tree_mask.device}: pass tree_mask.flatten()."
        )
    if mode == TreeMaskMode.QLEN_ONLY_BITPACKING:
        if n > MAX_PACKED_NODES:
            raise ValueError(
                f"A bit-packed mask holds {MAX_PACKED_NODES} nodes, not {n}: use QLEN_ONLY."
            )
        least = batch * n * packed_bytes(n)  # callers may spell it in raw bytes too
    else:
        if tree_mask.element_size() != 1:
            raise ValueError(
                f"tree_mask must hold one byte per cell (bool or uint8), got {tree_mask.dtype}."
            )
        # FULL_MASK also needs sum(seq_lens) * n, which the host does not know.
        least = batch * n * n
    if tree_mask.nbytes < least:
        raise ValueError(
            f"tree_mask holds {tree_mask.nbytes} bytes, {least} are needed for {batch} requests "
            f"of {n} nodes: allocate a larger buffer."
        )


def check_verify_tree(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrieve_index: torch.Tensor,
    retrieve_next_token: torch.Tensor,
    retrieve_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> tuple[int, int, int]:
    """Check the arguments of ``verify_tree``; return batch, nodes and slots per request."""
    if candidates.dim() != 2 or accept_index.dim() != 2:
        raise ValueError(
            "candidates must be [batch, nodes] and accept_index [batch, slots], got "
            f"{list(candidates.shape)} and {list(accept_index.shape)}: reshape them."
        )
    (batch, n), slots = candidates.shape, accept_index.shape[1]
    device, i64, i32 = candidates.device, torch.int64, torch.int32
    if not 1 <= n <= MAX_NODES or slots < 1:
        raise ValueError(
            f"{n} nodes and {slots} accept slots per request: use 1 to {MAX_NODES} nodes and "
            "at least 1 slot (the root)."
        )
    expect("candidates", candidates, (batch, n), i64, device)
    expect("retrieve_index", retrieve_index, (batch, n), i64, device)
    expect("retrieve_next_token", retrieve_next_token, (batch, n), i64, device)
    expect("retrieve_next_sibling", retrieve_next_sibling, (batch, n), i64, device)
    expect("target_predict", target_predict, (batch, n), i64, device)
    expect("predicts", predicts, (batch * n,), i32, device)
    expect("accept_index", accept_index, (batch, slots), i32, device)
    expect("accept_token_num", accept_token_num, (batch,), i32, device)
    return batch, n, slots
