"""The kernels of a speculation round: Triton on a GPU, PyTorch anywhere else, one signature.

``respec_kernels.reference`` and ``respec_kernels.triton`` hold the same file names; the functions
below pick by the device of their arguments. Imports torch, and triton on first use on a GPU.
"""

from respec_kernels.dispatch import build_tree, implementation, verify_tree
from respec_kernels.modes import MAX_NODES, TreeMaskMode, packed_bytes

__all__ = [
    "MAX_NODES",
    "TreeMaskMode",
    "build_tree",
    "implementation",
    "packed_bytes",
    "verify_tree",
]
