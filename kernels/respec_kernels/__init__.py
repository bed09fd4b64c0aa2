"""The kernels of a speculation round: Triton on a GPU, PyTorch anywhere else, one signature.

``respec_kernels.reference`` and ``respec_kernels.triton`` hold the same file names; the functions
below pick by the device of their arguments. Imports torch, and triton on first use on a GPU.
"""

from respec_kernels.dispatch import (
    build_tree,
    draft_topk,
    implementation,
    sample_rows,
    verify_sampled_tree,
    verify_tree,
)
from respec_kernels.modes import MAX_NODES, TreeMaskMode, packed_bytes
from respec_kernels.schedule import choose_schedule
from respec_kernels.verified import VerifiedTrees

__all__ = [
    "MAX_NODES",
    "TreeMaskMode",
    "VerifiedTrees",
    "build_tree",
    "choose_schedule",
    "draft_topk",
    "implementation",
    "packed_bytes",
    "sample_rows",
    "verify_sampled_tree",
    "verify_tree",
]
