"""A server that cannot serve as it was told ends with one sentence, also from a process of SGLang.

A refusal raised in a scheduler would stand at the end of a traceback of SGLang's start.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sglang_respec.errors import RespecError

logger = logging.getLogger(__name__)
KILLED_WITHIN_S = 60.0


@contextmanager
def refusals_stop_the_server() -> Iterator[None]:
    """Around what a scheduler does at its start; tells the parent as SGLang's scheduler does."""
    try:
        yield
    except RespecError as error:
        logger.error("respec: %s The server stops.", error)  # noqa: TRY400  (no traceback)
        os.kill(os.getppid(), signal.SIGQUIT)  # on which it ends all its children
        time.sleep(KILLED_WITHIN_S)
        sys.exit(1)
