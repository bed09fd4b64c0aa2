"""Top-k, top-p and min-p without sorting, as functions of Triton kernels.

Mathematics
    The allowed set is a prefix of the order (t descending, id ascending), see
    ``reference/allowed.py``. Let v be the winner of the race among the tokens before some bound
    (at first, all). One pass over the row counts and weighs the tokens before v, which decides
    whether v is allowed. If it is, v is the winner among the allowed. If not, nothing from v on is,
    v becomes the bound, and the winner among the tokens before it, found in the same pass, is the
    next v. The most probable token is always allowed, so this ends. Whatever the logits, the noise
    is independent of them, so a pass cuts the mass left over by a random fraction, and the first v
    is allowed with a chance of the allowed mass: 0.95 and more for a top-p of 0.95.
    Masses are the integers of the definition, so verdicts do not depend on the order of summation.
Memory
    Reads the row once per pass; the two tables (64 KiB) stay in the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from respec_kernels.triton.race import LOG2_E, NOBODY, divided, race


@triton.jit
def weights(below, high_ptr, low_ptr):  # type: ignore[no-untyped-def]  # f32 max t - t -> i64
    """Integer weights of tokens, in units of 2^-40 of the most probable token's."""
    n = tl.minimum(below * 24204406.0, 687865856.0).to(tl.int32)
    product = tl.load(high_ptr + ((n >> 12) & 4095)) * tl.load(low_ptr + (n & 4095))
    return product >> (22 + (n >> 24)).to(tl.int64)


@triton.jit
def judge(count, mass, total, weight, top_k, top_p, min_p):  # type: ignore[no-untyped-def]
    """Whether a token is allowed that has count tokens of this mass before it."""
    limit = (total.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64)
    in_mass = (mass <= limit) | (top_p >= 1.0)
    heavy = weight.to(tl.float64) >= min_p.to(tl.float64) * 1099511627776.0
    return (count == 0) | ((count < top_k) & in_mass & heavy)


@triton.jit
def inspect(  # type: ignore[no-untyped-def]
    row_ptr, first, end, temperature, peak, pivot_t, pivot, state, high_ptr, low_ptr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One pass over logits first .. end - 1: who lies before the pivot, and who wins among them.

    peak is the row's largest t. Returns the number of tokens before the pivot (i32), their mass
    and the mass of all (i64), and score and id of the winner among those before (NOBODY: none).
    """
    count = tl.full([], 0, tl.int32)
    mass = tl.full([], 0, tl.int64)
    total = tl.full([], 0, tl.int64)
    best = tl.full([], float("-inf"), tl.float64)
    best_id = tl.full([], NOBODY, tl.int32)
    for start in range(first, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logits = tl.load(row_ptr + ids, mask=ids < end, other=float("-inf")).to(tl.float32)
        scaled = divided(logits, temperature)
        weight = weights(peak - scaled, high_ptr, low_ptr)
        before = (scaled > pivot_t) | ((scaled == pivot_t) & (ids < pivot))
        count += tl.sum(before.to(tl.int32), 0)
        mass += tl.sum(tl.where(before, weight, 0), 0)
        total += tl.sum(weight, 0)
        chance = tl.exp2((scaled - peak) * LOG2_E)
        best, best_id = race(
            chance, before, logits, ids, start, row_ptr, temperature, peak, state, best, best_id
        )  # fmt: skip
    return count, mass, total, best, best_id
