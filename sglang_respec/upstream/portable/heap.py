"""Keeping freed memory for the next step, on a machine with no GPU.

A step's temporaries are tens of megabytes: attention gathers the keys and values of a batch. glibc
hands blocks of that size back to the kernel when they are freed, which maps and clears the same
pages again in the next step. PyTorch keeps freed memory on a GPU; here glibc is asked to.
"""

import ctypes

KEPT_BYTES = 1 << 30  # a block up to this size, and so much free memory at the heap's end
# Of malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Whether this process's C library took it; where it is not glibc, nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, KEPT_BYTES) for name in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))
