"""Scheduler and detokenizer as forks of the launching process, on a CPU.

SGLang spawns them, so each imports everything again: two more times half a minute on a
laptop. A fork inherits the modules that the launcher has loaded. That is safe only before
the process has threads; with CUDA it never is, and there this is not used.
"""

import logging
import multiprocessing
from pathlib import Path
from typing import Any

from sglang_respec.config import load_config

logger = logging.getLogger(__name__)

THREADS_OF_THIS_PROCESS = Path("/proc/self/task")


def fork_children(_: None, *__: Any, **___: Any) -> None:
    """Runs after SGLang has chosen `spawn`; leaves that choice where a fork is unsafe."""
    if not load_config().portable_fork or not THREADS_OF_THIS_PROCESS.is_dir():
        return  # switched off, or not Linux
    threads = len(list(THREADS_OF_THIS_PROCESS.iterdir()))
    if threads > 1:
        logger.info("Spawning SGLang's processes: %d threads run here already.", threads)
        return
    multiprocessing.set_start_method("fork", force=True)
