"""The speculative worker's one tie to drafter swaps: it reports what the target accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class DrafterFeed:
    """Mixin of the worker, in front of SGLang's class."""

    drafter_feed: Callable[[list[int]], None] | None = None  # set when the scheduler is ready

    def on_verify_complete_cpu(
        self, num_correct_drafts_per_req: list[int], batch_size: int = 0
    ) -> None:
        if self.drafter_feed is not None:
            self.drafter_feed(num_correct_drafts_per_req)
        parent: Any = super()
        parent.on_verify_complete_cpu(num_correct_drafts_per_req, batch_size=batch_size)
