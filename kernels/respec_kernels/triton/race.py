"""The perturbed argmax of a row: float32 over the row, float64 where it decides. Exact.

Mathematics
    The token with the largest s_v = t_v + g_v (float64) is wanted; p is the largest t so far. With
    w_v = exp(t_v - p) and E_v of ``noise.py``, s_v - p = log(w_v / E_v). The exact score and id of
    the best token so far are kept, so a token with

        w_v / E_v < floor = exp(best - p - slack)

    cannot beat it. As E_v >= 1 - u_v, no token with w_v < floor * (1 - u_v) can either: one
    product, without a logarithm, dismisses most blocks of a row (the best of k blocks so far is
    beaten in the next with a chance of 1 / (k + 1)). In the others E_v is computed, the token
    with the largest w_v / E_v is scored in float64, the floor rises, and so on until nobody is
    left above it: one token, or two with a chance of about twice the slack.
Slack
    The ratio of the second test is exp2((t_v - p) * log2(e)) / E_v with t_v rounded as in the
    definition. Its logarithm is off by less than 2^-14 while w_v does not underflow: difference
    and product of the exponent have a relative error of 2^-22 of at most 126 bits, 2.1e-5; exp2,
    the quotient and the floor's own exp2 2^-22 each; the floor's exponent, at least -60, is
    rounded to float32, 3.6e-6; E is off by 2^-18 (``noise.rate``). Together 3e-5, and SLACK = 2^-13
    is four times that, which costs nothing.
    The first test takes w_v = exp2((z_v - m) * (log2(e) / T)), m the largest logit so far: no
    division per token, but t_v and p are z_v / T and m / T only up to rounding, 2^-24 of each:
    it allows 2^-23 * (|p| + 88) on top, of which 88 * 2^-23 = 1e-5 fits into SLACK.
    A token whose w_v underflows is 87 nats below p and can win only if nobody scores within 60 of
    it (a hash of 0 has noise -709.8); the floor is then 0 and everyone is scored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from respec_kernels.triton.noise import complement, exact_noise, hash_ids, rate

LOG2_E = tl.constexpr(1.4426950408889634)
SLACK = tl.constexpr(1.220703125e-4)
ROUNDING = tl.constexpr(1.1920928955078125e-7)  # 2^-23
NOBODY = tl.constexpr(2147483647)  # an id larger than any


@triton.jit
def floor_of(best, peak, slack):  # type: ignore[no-untyped-def]  # f64, f32, f32 scalars -> f32
    """The least ratio, relative to peak, with which a token may reach a score of best."""
    gap = best - peak.to(tl.float64) - slack
    return tl.where(gap < -60.0, 0.0, tl.exp2((gap * LOG2_E).to(tl.float32)))


@triton.jit
def exact_score(row_ptr, token, temperature, state):  # type: ignore[no-untyped-def]
    """s of one token, f64."""
    t = tl.div_rn(tl.load(row_ptr + token).to(tl.float32), temperature)
    return t.to(tl.float64) + exact_noise(hash_ids(state, token))


@triton.jit
def divided(logits, temperature):  # type: ignore[no-untyped-def]  # f32 block, f32 scalar
    """t = logits / T, correctly rounded, as everywhere."""
    return tl.div_rn(logits, tl.zeros_like(logits) + temperature)


@triton.jit
def race(weight, may, logits, ids, start, row_ptr, temperature, peak, state, best, best_id):  # type: ignore[no-untyped-def]
    """Best score (f64) and id (i32) so far, after one block.

    weight: f32 w, of the first test; may: bool, who takes part; ids: i32, start + 0, 1, ..
    """
    hashes = hash_ids(state, ids)
    loose = floor_of(best, peak, SLACK + ROUNDING * tl.abs(peak))
    hopeful = may & (weight >= loose * complement(hashes))
    if tl.max(hopeful.to(tl.int32), 0) > 0:
        chance = tl.exp2((divided(logits, temperature) - peak) * LOG2_E)
        ratio = tl.where(hopeful, chance / rate(hashes), -1.0)
        floor = floor_of(best, peak, SLACK)
        top, at = tl.max(ratio, 0, return_indices=True)
        while top >= floor:
            token = start + at
            score = exact_score(row_ptr, token, temperature, state)
            better = (score > best) | ((score == best) & (token < best_id))
            best = tl.where(better, score, best)
            best_id = tl.where(better, token, best_id)
            floor = floor_of(best, peak, SLACK)
            ratio = tl.where(ids == token, -1.0, ratio)
            top, at = tl.max(ratio, 0, return_indices=True)
    return best, best_id


@triton.jit
def scan(row_ptr, first, end, temperature, greedy, state, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One pass over logits first .. end - 1 of a row.

    Returns their maximum (f32), the sum of exp((z - maximum) / T) (f32; NaN if the row is
    unusable), and the exact score (f64) and id (i32) of the winner.
    """
    per_bit = tl.div_rn(tl.full([], LOG2_E, tl.float32), temperature)
    largest = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    best = tl.full([], float("-inf"), tl.float64)
    best_id = tl.full([], NOBODY, tl.int32)
    for start in range(first, end, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logits = tl.load(row_ptr + ids, mask=ids < end, other=float("-inf")).to(tl.float32)
        top = tl.max(logits, 0)
        before = largest
        largest = tl.maximum(largest, top)
        origin = tl.where(largest == float("-inf"), 0.0, largest)
        weight = tl.exp2((logits - origin) * per_bit)
        total = total * tl.exp2((before - origin) * per_bit) + tl.sum(weight, 0)
        peak = tl.div_rn(largest, temperature)
        if (total < float("inf")) & (peak < float("inf")):
            if greedy:
                if peak.to(tl.float64) > best:
                    best = peak.to(tl.float64)
                    tied = divided(logits, temperature) == peak
                    best_id = tl.min(tl.where(tied, ids, NOBODY), 0)
            else:
                may = logits > float("-inf")
                best, best_id = race(
                    weight, may, logits, ids, start, row_ptr, temperature, peak, state,
                    best, best_id,
                )  # fmt: skip
    return largest, total, best, best_id
