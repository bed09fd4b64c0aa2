"""The noise behind a sampled token, in PyTorch: bit for bit that of SGLang's seeded sampler.

Mathematics
    h(s, t, v) is MurmurHash3 (32 bit, Appleby 2011) of 16 bytes, little endian: the seed s in 8,
    the position t in 4, the token id v in 4. A block is scrambled by itself, then absorbed:

        scramble(b)  = rotl(b * C1, 15) * C2          absorb(h, b) = rotl(h ^ b, 13) * 5 + C3

    so the part that depends on the token id alone is computed once per vocabulary. The hash
    becomes Gumbel noise in float64 as `sglang.srt.layers.sampler.multinomial_with_seed` does it:

        u = h / (2^32 - 1),   g = -log(-clamp(log u, -max, -2^-32))

    h = 0 gives g = -709.8, every other h lies in [-3.1, 22.2].
Memory
    32-bit words in int32 (products wrap, right shifts are masked), changed in place.
Origin
    Written from the definition above, which is SGLang 0.5.23's.
"""

from __future__ import annotations

from functools import lru_cache

import torch

_C1, _C2, _C3 = 0xCC9E2D51, 0x1B873593, 0xE6546B64
_FINAL_1, _FINAL_2 = 0x85EBCA6B, 0xC2B2AE35
_BYTES_HASHED = 16
_LARGEST = float(2**32 - 1)
_LOG_U_MIN, _LOG_U_MAX = torch.finfo(torch.float64).min, -(2.0**-32)


def murmur_hash32(
    seed: torch.Tensor,  # [n] i64 or u64
    positions: torch.Tensor,  # [n] integer, < 2^32
    col_indices: torch.Tensor,  # [m] integer, < 2^32
) -> torch.Tensor:
    """[n, m] u32: the hash of every (seed, position) row with every token id."""
    states = row_states(seed_states(seed), positions)
    return hash_ids(states, scramble_ids(col_indices))


def gumbel(
    hashes: torch.Tensor,  # u32, any shape
) -> torch.Tensor:
    """f64 Gumbel noise of each hash, the arithmetic of SGLang's `multinomial_with_seed`."""
    return negative_gumbel(hashes).neg_()


def negative_gumbel(hashes: torch.Tensor) -> torch.Tensor:
    """log(-log u) in f64, one operation short of the noise: `score - it` is `score + noise`."""
    u = hashes.to(torch.float64).div_(_LARGEST)
    return u.log_().clamp_(_LOG_U_MIN, _LOG_U_MAX).neg_().log_()


def seed_states(seeds: torch.Tensor) -> torch.Tensor:
    """[n] i32: the hash's state after the 8 bytes of each seed."""
    words = _scramble(seeds.contiguous().view(torch.int32).view(-1, 2))
    low, high = words.unbind(1)
    return _absorb(_absorb_first(low), high)


def row_states(seeded: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[n] i32: the state after seed and position, all that a row of hashes shares."""
    return _absorb(seeded, _scramble(_low_words(positions)))


def scramble_ids(ids: torch.Tensor) -> torch.Tensor:
    """[m] i32: the part of the hash that depends on the token id alone."""
    return _scramble(_low_words(ids))


@lru_cache(maxsize=64)
def scrambled_vocabulary(size: int, device: torch.device) -> torch.Tensor:
    """`scramble_ids` of 0, 1, .. size - 1. Never written to."""
    return scramble_ids(torch.arange(size, device=device))


def hash_ids(states: torch.Tensor, scrambled: torch.Tensor) -> torch.Tensor:
    """[n, m] u32: the hash of every row's state with every scrambled id."""
    word = _absorb(states[:, None], scrambled[None, :]).bitwise_xor_(_BYTES_HASHED)
    _fold(word, 16).mul_(_signed(_FINAL_1))
    _fold(word, 13).mul_(_signed(_FINAL_2))
    return _fold(word, 16).view(torch.uint32)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _low_words(integers: torch.Tensor) -> torch.Tensor:
    """The low 32 bits of each integer, as a view of its 8 bytes (little endian)."""
    return integers.to(torch.int64).contiguous().view(torch.int32)[::2]


def _rotate_left(word: torch.Tensor, bits: int) -> torch.Tensor:
    """Rotate in place; int32 shifts carry the sign, so what comes in from above is masked."""
    high = word << bits
    return word.bitwise_right_shift_(32 - bits).bitwise_and_((1 << bits) - 1).bitwise_or_(high)


def _scramble(block: torch.Tensor) -> torch.Tensor:
    return _rotate_left(block * _signed(_C1), 15).mul_(_signed(_C2))


def _absorb(state: torch.Tensor, scrambled: torch.Tensor) -> torch.Tensor:
    return _rotate_left(state ^ scrambled, 13).mul_(5).add_(_signed(_C3))


def _absorb_first(scrambled: torch.Tensor) -> torch.Tensor:
    """`_absorb` into the initial state, which is zero."""
    return _rotate_left(scrambled.clone(), 13).mul_(5).add_(_signed(_C3))


def _fold(word: torch.Tensor, bits: int) -> torch.Tensor:
    """word ^= word >> bits, unsigned, in place."""
    return word.bitwise_xor_((word >> bits).bitwise_and_((1 << (32 - bits)) - 1))
