"""The speculative worker's ties to drafter swaps: what it reports, and what it is told."""

from __future__ import annotations

from collections.abc import Callable


class DrafterFeed:
    """Mixin of the worker."""

    drafter_feed: Callable[[list[int], str], None] | None = None  # set when the scheduler is ready

    def feed_drafter(self, num_correct_drafts_per_req: list[int], shape: str) -> None:
        """Results of one verify step. A plain step verifies nothing and says nothing here."""
        if self.drafter_feed is not None:
            self.drafter_feed(num_correct_drafts_per_req, shape)

    def drafter_swapped(self) -> None:
        """The drafter's weights changed, or changed back, between two steps."""
