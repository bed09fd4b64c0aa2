"""The arithmetic of one attention layer over an `AttentionPlan`, in PyTorch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from sglang_respec.upstream.portable.attention_plan import AttentionGroup, AttentionPlan


def attend(
    query: torch.Tensor,  # [T, Hq, D]
    key_cache: torch.Tensor,  # [slots, Hkv, D]
    value_cache: torch.Tensor,  # [slots, Hkv, Dv]
    plan: AttentionPlan,
    *,
    scaling: float,
    window: int = -1,
    logit_cap: float = 0.0,
    to_swa_slots: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attention output [T, Hq, Dv] for the rows that `plan` covers.

    window: tokens back that a query sees, itself excluded; negative for all of them.
    logit_cap: scores become cap * tanh(score / cap) when positive (Gemma 2).
    to_swa_slots: maps full-pool slots to the sliding-window pool, for layers stored there.

    Query heads that share a key/value head are folded into the query rows, so that no key
    or value is copied per query head.
    """
    num_heads, value_dim = query.shape[1], value_cache.shape[2]
    whole = len(plan.groups) == 1 and plan.groups[0].rows is None
    output = None if whole else query.new_empty(query.shape[0], num_heads, value_dim)
    for group in plan.groups:
        slots = group.slots if to_swa_slots is None else group.swa_slots(to_swa_slots)
        rows = query if group.rows is None else query.index_select(0, group.rows)
        attended = _attend_group(
            rows, key_cache, value_cache, group, slots, scaling, window, logit_cap
        )
        if output is None or group.rows is None:
            return attended  # one group that is the whole batch, in order
        if group.keep is None:
            output.index_copy_(0, group.rows, attended)
        else:
            output.index_copy_(0, group.rows[group.keep], attended[group.keep])
    assert output is not None
    return output


def _attend_group(
    rows: torch.Tensor,  # [B*Q, Hq, D]
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    group: AttentionGroup,
    slots: torch.Tensor,
    scaling: float,
    window: int,
    logit_cap: float,
) -> torch.Tensor:
    batch, queries, length = group.size, group.num_queries, group.num_slots
    num_heads, head_dim = rows.shape[1], rows.shape[2]
    kv_heads = key_cache.shape[1]
    repeats = num_heads // kv_heads

    folded = rows.view(batch, queries, kv_heads, repeats, head_dim).permute(0, 2, 3, 1, 4)
    folded = folded.reshape(batch, kv_heads, repeats * queries, head_dim)
    key = _gather(key_cache, slots, batch, length, rows.dtype)
    value = _gather(value_cache, slots, batch, length, rows.dtype)

    causal = group.causal_alone and window < 0 and logit_cap <= 0 and repeats == 1
    bias = None if causal else group.bias(window, repeats, rows.dtype)
    if logit_cap > 0:
        attended = _capped_attention(folded, key, value, bias, scaling, logit_cap)
    else:
        attended = F.scaled_dot_product_attention(
            folded, key, value, attn_mask=bias, scale=scaling, is_causal=causal
        )
    attended = attended.view(batch, kv_heads, repeats, queries, -1).permute(0, 3, 1, 2, 4)
    return attended.reshape(batch * queries, num_heads, -1)


def _gather(
    cache: torch.Tensor, slots: torch.Tensor, batch: int, length: int, dtype: torch.dtype
) -> torch.Tensor:
    """[B, Hkv, L, D] view of the cache rows at `slots`, in the query's dtype."""
    gathered = cache.index_select(0, slots)
    if gathered.dtype != dtype:
        gathered = gathered.to(dtype)
    return gathered.view(batch, length, cache.shape[1], cache.shape[2]).transpose(1, 2)


def _capped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scaling: float,
    logit_cap: float,
) -> torch.Tensor:
    scores = torch.matmul(query, key.transpose(2, 3)).float() * scaling
    scores = logit_cap * torch.tanh(scores / logit_cap)
    if bias is not None:
        scores = scores + bias
    return torch.matmul(scores.softmax(-1).to(query.dtype), value)
