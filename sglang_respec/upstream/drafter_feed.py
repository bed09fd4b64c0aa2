"""The speculative worker's ties to drafter swaps: what it reports, and what it is told."""

from __future__ import annotations

from collections.abc import Callable

from sglang_respec.upstream.drafter_spans import RespecOutputStreamer


class DrafterFeed:
    """Mixin of the worker."""

    drafter_feed: Callable[[list[int], str], None] | None = None  # set when the scheduler is ready

    def feed_drafter(self, num_correct_drafts_per_req: list[int], shape: str) -> None:
        """Results of one verify step. A plain step verifies nothing and says nothing here."""
        if self.drafter_feed is not None:
            self.drafter_feed(num_correct_drafts_per_req, shape)

    def drafter_swapped(self, version: int) -> None:
        """The drafter's weights changed, or changed back, between two steps; this one serves."""

    def policy_updated(self) -> None:
        """New weights of the target were taken, or the first of several that come in one go."""

    def streamer_class(self) -> type[RespecOutputStreamer]:
        """What sends this server's answers."""
        return RespecOutputStreamer
