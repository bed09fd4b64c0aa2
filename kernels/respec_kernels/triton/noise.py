"""The noise behind a sampled token, as functions of Triton kernels. See ``reference/noise.py``.

``exact_noise`` is the definition, float64 and dear; kernels apply it to single tokens. ``rate`` is
what a whole row can afford: with u = h / (2^32 - 1),

    E = -log u,   g = -log E,   exp(t + g) = exp(t) / E

so the largest t + g is the largest exp(t) / E, and exp(t) is needed for the softmax anyway.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _mix(state, block):  # type: ignore[no-untyped-def]  # u32
    """Scramble a block and absorb it."""
    block = block * 0xCC9E2D51
    block = ((block << 15) | (block >> 17)) * 0x1B873593
    state = state ^ block
    return ((state << 13) | (state >> 19)) * 5 + 0xE6546B64


@triton.jit
def row_state(seed, position):  # type: ignore[no-untyped-def]  # i64 scalars -> u32
    """The hash's state after seed and position."""
    words = seed.to(tl.uint64)
    low = (words & 0xFFFFFFFF).to(tl.uint32)
    state = _mix(low ^ low, low)
    state = _mix(state, (words >> 32).to(tl.uint32))
    return _mix(state, (position & 0xFFFFFFFF).to(tl.uint32))


@triton.jit
def hash_ids(state, ids):  # type: ignore[no-untyped-def]  # u32 scalar, any integers -> u32
    """The hash of a row's state with each token id."""
    word = _mix(state, ids.to(tl.uint32)) ^ 16
    word = (word ^ (word >> 16)) * 0x85EBCA6B
    word = (word ^ (word >> 13)) * 0xC2B2AE35
    return word ^ (word >> 16)


@triton.jit
def exact_noise(hashes):  # type: ignore[no-untyped-def]  # u32 -> f64
    """g, by the arithmetic of the definition."""
    log_u = tl.log(hashes.to(tl.float64) / 4294967295.0)
    log_u = tl.minimum(tl.maximum(log_u, -1.7976931348623157e308), -2.3283064365386963e-10)
    return -tl.log(-log_u)


@triton.jit
def complement(hashes):  # type: ignore[no-untyped-def]  # u32 -> f32
    """1 - u, which is a lower bound of E = -log u; at least 2^-32, as in the definition."""
    return tl.maximum(
        (0xFFFFFFFF - hashes).to(tl.float32) * 2.3283064365386963e-10, 2.3283064365386963e-10
    )


@triton.jit
def rate(hashes):  # type: ignore[no-untyped-def]  # u32 -> f32
    """E = -log u, to a relative error of 2^-18 with logarithms as good as lg2.approx.f32.

    Near u = 1 the logarithm's absolute error would be all there is, so there the series of
    -log1p(-x) in x = 1 - u, cut after x^5 (the rest is below 2^-22 of it for x < 1/16). From there
    on E is at least 0.0645 and an absolute error of 2^-22 is a relative one of 2^-18.
    """
    x = complement(hashes)
    series = x * (1.0 + x * (0.5 + x * (0.33333333 + x * (0.25 + x * 0.2))))
    far = -tl.log(hashes.to(tl.float32) * 2.3283064365386963e-10)
    return tl.where(x < 0.0625, series, far)
