"""Freed memory stays with the process: counted in page faults, in a process of its own."""

import subprocess
import sys

import pytest

BLOCK_BYTES, TIMES = 48 << 20, 20
PAGES = BLOCK_BYTES // 4096
COUNT = f"""
import resource, sys
from sglang_respec.upstream.portable.heap import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("mallopt refused")
bytearray({BLOCK_BYTES})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TIMES}):
    bytearray(b"1" * {BLOCK_BYTES})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", COUNT, how], capture_output=True, text=True, check=True, timeout=120
    )
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_blocks_that_are_freed_are_not_mapped_anew():
    assert faults("as glibc has it") > TIMES * PAGES / 10, "else there is nothing to gain"
    assert faults("kept") < 4 * PAGES
