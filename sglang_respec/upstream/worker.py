"""The speculative worker of this extension, a subclass of SGLang's own."""

import logging
from typing import Any

from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2

from sglang_respec.upstream.drafter_feed import DrafterFeed
from sglang_respec.upstream.sampling.request_table import request_table

logger = logging.getLogger(__name__)


class RespecWorker(DrafterFeed, EAGLEWorkerV2):
    """Takes the place of `EAGLEWorkerV2` for `--speculative-algorithm EAGLE3`.

    The round is SGLang's: draft, verify, draft-extend. Drafting ranks by the target's noise
    (`sampling/drafting.py`), verification samples as plain decoding does
    (`sampling/verification.py`). Policy, plain tier and drafter swaps attach here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        logger.info("respec: RespecWorker serves EAGLE3.")

    def verify(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        batch.spec_info.respec_requests = request_table(self.target_worker.model_runner)
        result = super().verify(batch, *args, **kwargs)
        # -1 marks a failed request, and what follows embeds these tokens.
        result.next_draft_input.bonus_tokens.clamp_(min=0)
        if result.prepared_draft_extend_inputs is not None:
            result.prepared_draft_extend_inputs[2].clamp_(min=0)
        return result
