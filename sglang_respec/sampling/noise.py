"""The hash behind seeded sampling, bit for bit SGLang's; `respec_kernels` holds it."""

from respec_kernels.reference.noise import gumbel, murmur_hash32

__all__ = ["gumbel", "murmur_hash32"]
