"""Whether this machine has a CUDA device, asked without torch."""

from __future__ import annotations

import functools
import subprocess
import sys

# In a process of its own: a process that has initialised CUDA must not fork afterwards.
_ASK_DRIVER = """
import ctypes, sys
try:
    driver = ctypes.CDLL("libcuda.so.1")
except OSError:
    sys.exit("no driver")
count = ctypes.c_int(0)
if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
    sys.exit("no device")
version = ctypes.c_int(0)
driver.cuDriverGetVersion(ctypes.byref(version))
print(count.value, version.value)
"""


@functools.cache
def cuda_devices() -> tuple[int, str]:
    """How many CUDA devices are visible, and the CUDA version of the driver ("" without one)."""
    answer = subprocess.run(
        [sys.executable, "-I", "-c", _ASK_DRIVER], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        return 0, ""
    count, version = (int(each) for each in answer.stdout.split())
    return count, f"{version // 1000}.{version % 1000 // 10}"
