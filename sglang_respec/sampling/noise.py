"""The hash behind seeded sampling, bit for bit SGLang's, in PyTorch.

SGLang hashes (seed, position, token id) with MurmurHash3 (32 bit, Appleby 2011) in a Triton
kernel; its CPU version needs compiled kernels that no package index carries. Products of two
32-bit words may pass 2^63; int64 wraps there and the low 32 bits, all that is kept, stay right.
"""

import torch

_WORD = 0xFFFFFFFF
_C1, _C2 = 0xCC9E2D51, 0x1B873593
_BYTES_HASHED = 16  # seed (8), position (4), token id (4)


def murmur_hash32(
    seed: torch.Tensor,  # [n] i64 or u64
    positions: torch.Tensor,  # [n] integer, < 2^32
    col_indices: torch.Tensor,  # [m] integer, < 2^32
) -> torch.Tensor:
    """[n, m] u32: the hash of every (seed, position) row with every token id."""
    words = seed.view(torch.int64)
    state = torch.zeros_like(words)
    state = _mix(state, words & _WORD)
    state = _mix(state, (words >> 32) & _WORD)
    state = _mix(state, positions.to(torch.int64) & _WORD)
    mixed = _mix(state[:, None], (col_indices.to(torch.int64) & _WORD)[None, :])
    return _finish(mixed ^ _BYTES_HASHED).to(torch.uint32)


def _rotate_left(word: torch.Tensor, bits: int) -> torch.Tensor:
    return ((word << bits) | (word >> (32 - bits))) & _WORD


def _mix(state: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    block = _rotate_left((block * _C1) & _WORD, 15)
    state = state ^ ((block * _C2) & _WORD)
    return (_rotate_left(state, 13) * 5 + 0xE6546B64) & _WORD


def _finish(word: torch.Tensor) -> torch.Tensor:
    word = word ^ (word >> 16)
    word = (word * 0x85EBCA6B) & _WORD
    word = word ^ (word >> 13)
    word = (word * 0xC2B2AE35) & _WORD
    return word ^ (word >> 16)
