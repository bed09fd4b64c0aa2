"""Seeds of requests: drawn when none is given, derived for the samples of one request.

A seed is a signed 64-bit integer, as SGLang takes it. Drawn and derived ones have 63 bits, so
that they are the same number in every language's JSON reader that knows 64-bit integers.
"""

import hashlib
import secrets

SEED_BITS = 63
_MASK_64 = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def draw_seed() -> int:
    """A seed nobody can guess, for a request that brings none."""
    return secrets.randbits(SEED_BITS)


def seed_of_name(name: str) -> int:
    """The seed of a request that is known by its id only: the same in every process."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - SEED_BITS)


def sample_seed(seed: int, sample: int) -> int:
    """The seed of sample number ``sample`` of a request; sample 0 keeps the request's own.

    Others are SplitMix64's output (Steele, Lea and Flood 2014) number ``sample`` after state
    ``seed``, so that neighbouring seeds and samples have nothing in common.
    """
    if sample < 0:
        raise ValueError(f"sample must be 0 or more, got {sample}.")
    if sample == 0:
        return seed
    state = (seed + sample * _GOLDEN_GAMMA) & _MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return (state ^ (state >> 31)) >> (64 - SEED_BITS)
