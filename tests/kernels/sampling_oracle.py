"""Coupled sampling in plain Python, row by row, from the definition. Judge of the kernels.

Hashes bytes, sorts lists, adds in float64. Knows nothing of fixed point or of slices.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

GREEDY, ALL = 1, 1 << 30


@dataclass(frozen=True)
class Parameters:
    temperature: float = 1.0
    top_k: int = ALL
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


def murmur3_x86_32(data: bytes) -> int:
    """Appleby's MurmurHash3 with seed 0, of whole 4-byte blocks."""
    word, state = 0xFFFFFFFF, 0
    for (block,) in struct.iter_unpack("<I", data):
        mixed = block * 0xCC9E2D51 & word
        mixed = (mixed << 15 | mixed >> 17) & word
        state ^= mixed * 0x1B873593 & word
        state = (state << 13 | state >> 19) & word
        state = (state * 5 + 0xE6546B64) & word
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & word
    return state ^ state >> 16


def gumbel(seed: int, position: int, token: int) -> float:
    u = murmur3_x86_32(struct.pack("<qII", seed, position, token)) / (2**32 - 1)
    log_u = math.log(u) if u > 0 else -1.7976931348623157e308
    return -math.log(-min(log_u, -(2.0**-32)))


def float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def scaled(logits: list[float], temperature: float) -> list[float]:
    """t = logits / T in float32. (A float64 quotient rounded again differs once in 2^29.)"""
    return [float32(z / float32(temperature)) for z in logits]


def usable(row: list[float]) -> bool:
    return max(row) > -math.inf and all(t < math.inf for t in row)


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(t - top) for t in row]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def allowed(row: list[float], parameters: Parameters) -> list[int]:
    """Ids the filters allow, most probable first."""
    probs = softmax(row)
    order = sorted(range(len(row)), key=lambda v: (-row[v], v))
    kept, before = [], 0.0
    for rank, v in enumerate(order):
        in_mass = parameters.top_p >= 1 or before <= parameters.top_p
        if rank < parameters.top_k and in_mass and probs[v] >= parameters.min_p * probs[order[0]]:
            kept.append(v)
        before += probs[v]
    return kept


def token(logits: list[float], position: int, parameters: Parameters) -> tuple[int, float]:
    """The token and its logprob; (-1, nan) for an unusable row."""
    row = scaled(logits, parameters.temperature)
    if not usable(row):
        return -1, math.nan
    if parameters.top_k == GREEDY:
        best = row.index(max(row))
    else:
        scores = {
            v: row[v] + gumbel(parameters.seed, position, v) for v in allowed(row, parameters)
        }
        best = min(scores, key=lambda v: (-scores[v], v))
    top = max(row)
    total = math.fsum(math.exp(t - top) for t in row)
    return best, row[best] - top - math.log(total)


def drafts(
    logits: list[float], position: int, parameters: Parameters, ids: list[int], k: int
) -> tuple[list[float], list[int]]:
    """The k best draft ids and their probabilities; unusable rows and empty slots: 0 and 0."""
    row = scaled(logits, parameters.temperature)
    if not usable(row):
        return [0.0] * k, [0] * k
    if parameters.top_k != GREEDY:
        row = [t + gumbel(parameters.seed, position, v) for t, v in zip(row, ids, strict=True)]
    probs = softmax(row)
    order = sorted(range(len(row)), key=lambda v: (-row[v], v))[:k]
    possible = [v for v in order if row[v] > -math.inf]
    empty = k - len(possible)
    return [probs[v] for v in possible] + [0.0] * empty, possible + [0] * empty
