"""Which tokens top-k, top-p and min-p allow: the one definition, for every mode and device.

Definition
    With t = logits / T, rounded to float32 once, order a row's tokens by (t descending, id
    ascending): probability descending, ties to the lower id. All three filters look at the
    original distribution (SGLang's joint rule), and token v is allowed when

        rank(v) < top_k
        mass strictly before v in that order  <= top_p * mass of the row      (top_p < 1)
        weight(v)  >= min_p * weight of the most probable token

    The most probable token always is. Each filter keeps a prefix of the order, so the allowed set
    is a prefix too.
Rounding
    Sums of floats depend on the order of summation, which differs between devices. Here masses
    are sums of integers, exact in any order. A token's weight is exp(t - max t) in units of 2^-40,

        n = trunc((max t - t) * 24204406),   24204406 / 2^24 = log2(e) to 2^-24
        weight = (HIGH[(n >> 12) mod 4096] * LOW[n mod 4096]) >> (22 + (n >> 24)),   0 from 2^-41 on

    with HIGH[i] = round(2^(36 - i / 4096)) and LOW[j] = round(2^(26 - j / 2^24)); one float32
    subtraction and one float32 product, then integers, so every implementation gets the same
    weight, and weights never grow along the order. The bounds are floor(top_p * mass) and
    ceil(min_p * 2^40), computed in float64 from the same integers: the same on every IEEE machine.
    Two implementations therefore allow the same set, always. Against real arithmetic a weight is
    off by at most a factor 1 +- 5e-6 (24-bit n, float32 rounding of an exponent below 41) and a
    mass by V * 2^-40, so a token within about 5e-6 of a bound may fall on either side of it, as
    in any float32 sampler; on the same side for everyone.
"""

from __future__ import annotations

from functools import lru_cache

import torch

EXPONENT_SCALE = 24204406.0  # log2(e) * 2^24, exact in float32
EXPONENT_LIMIT = 41 << 24  # no weight is left beyond
UNIT_BITS = 40  # the most probable token weighs 2^40
TABLE_BITS = 12
EVERYTHING = torch.iinfo(torch.int64).max


@lru_cache(maxsize=16)
def weight_tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """[4096] i64 each: HIGH and LOW of the module's definition. Never written to."""
    size = 1 << TABLE_BITS
    high = [round(2.0 ** (36 - i / size)) for i in range(size)]
    low = [round(2.0 ** (26 - j / size**2)) for j in range(size)]
    return torch.tensor(high, device=device), torch.tensor(low, device=device)


def weights(
    below: torch.Tensor,  # f32, max t - t, any shape; overwritten
) -> torch.Tensor:
    """i64 weights, in units of 2^-40 of the most probable token's."""
    high, low = weight_tables(below.device)
    # -inf logits lie infinitely far below; NaN (an unusable row) becomes some valid index.
    scaled = below.mul_(EXPONENT_SCALE).clamp_(max=EXPONENT_LIMIT)
    n = scaled.to(torch.int64).clamp_(0, EXPONENT_LIMIT)
    product = high.take((n >> 12).bitwise_and_(4095)).mul_(low.take(n & 4095))
    return product.bitwise_right_shift_(n.bitwise_right_shift_(24).add_(22))


def mass_limits(
    total: torch.Tensor,  # [R] i64, each row's mass
    top_ps: torch.Tensor,  # [R] f32
) -> torch.Tensor:
    """[R] i64: the largest mass that may lie before an allowed token."""
    limit = (total.to(torch.float64) * top_ps).to(torch.int64)
    return limit.masked_fill_(top_ps >= 1, EVERYTHING)


def least_weights(
    min_ps: torch.Tensor,  # [R] f32
) -> torch.Tensor:
    """[R] i64: the least weight an allowed token may have."""
    return (min_ps.to(torch.float64) * 2**UNIT_BITS).ceil_().to(torch.int64)


def allowed(
    scaled: torch.Tensor,  # [R, V] f32, t = logits / T
    top_ks: torch.Tensor,  # [R] i32
    top_ps: torch.Tensor,  # [R] f32
    min_ps: torch.Tensor,  # [R] f32
) -> torch.Tensor:
    """[R, V] bool: the tokens each row's filters allow."""
    ordered, order = torch.sort(scaled, dim=1, descending=True, stable=True)
    weight = weights(ordered[:, :1] - ordered)
    mass = weight.cumsum(1)
    limit = mass_limits(mass[:, -1], top_ps)
    kept = mass.sub_(weight) <= limit[:, None]
    kept &= weight >= least_weights(min_ps)[:, None]
    kept &= _ranks(scaled.shape[1], scaled.device) < top_ks[:, None]
    kept[:, 0] = True
    return torch.empty_like(kept).scatter_(1, order, kept)


@lru_cache(maxsize=64)
def _ranks(size: int, device: torch.device) -> torch.Tensor:
    return torch.arange(size, device=device)
