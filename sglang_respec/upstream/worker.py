"""The speculative worker of this extension, a subclass of SGLang's own."""

import logging
from typing import Any

from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2

logger = logging.getLogger(__name__)


class RespecWorker(EAGLEWorkerV2):
    """Takes the place of `EAGLEWorkerV2` for `--speculative-algorithm EAGLE3`.

    The round is SGLang's: draft, verify, draft-extend. Policy, sampling, plain tier and
    drafter swaps attach here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        logger.info("respec: RespecWorker serves EAGLE3.")
