"""The environment of a server on a machine with no GPU, where the host computes everything."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

TUNABLES = "GLIBC_TUNABLES"
TCACHE_COUNT = "glibc.malloc.tcache_count"

# What SGLang should find there, unless the user set it.
CPU_ENVIRON = {
    # After a crash SGLang waits a minute for core dumps of GPUs; there are none.
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH_WAIT_SECS": "0",
    # A torch thread that waits by spinning takes the core from the one it waits for; with other
    # work on the machine that more than halves the speed. Read when torch loads.
    "OMP_WAIT_POLICY": "PASSIVE",
    # The portable platform forks SGLang's processes, which is safe only before there are
    # threads; numpy starts some when it loads, and nothing here needs them.
    "OPENBLAS_NUM_THREADS": "1",
    # A step takes and frees hundreds of small blocks. Of a size glibc keeps 7 for the thread; each
    # further one is joined to its free neighbours, whose headers lie anywhere in memory, and cut
    # out of them again a moment later. Read when the process starts.
    TUNABLES: f"{TCACHE_COUNT}=256",
}


def with_cpu_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with what it lacks of CPU_ENVIRON; what the user set stays.

    glibc's tunables share one variable: ours goes behind the user's, unless they name it or the
    variable is empty.
    """
    found = {**CPU_ENVIRON, **environ}
    given = environ.get(TUNABLES, "")
    if given and TCACHE_COUNT not in given:
        found[TUNABLES] = f"{given}:{CPU_ENVIRON[TUNABLES]}"
    return found


def serve_with_cpu_environ(arguments: Sequence[str]) -> None:
    """Return if this process started with all of it; else become `respec serve` anew, which has.

    The C library reads its tunables before there is a Python. The process keeps its number.
    """
    wanted = with_cpu_environ(os.environ)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        command = [sys.executable, "-P", "-m", "respec_server", "serve", *arguments]
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, command, wanted)  # noqa: S606 (no shell, and our own command)
