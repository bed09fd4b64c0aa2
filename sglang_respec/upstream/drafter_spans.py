"""What a response says of how it was made: drafter versions per token, and its kinds of steps.

The tokens do not depend on either; the spans tell a trainer whose drafts it is looking at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.scheduler_components.output_streamer import SchedulerOutputStreamer
from sglang.srt.utils.weight_versions import WeightVersionEvent, compute_weight_version_spans

from sglang_respec.upstream.step_counts import COUNT_KEYS, step_counts

KEY = "drafter_versions"  # in meta_info: [{"version": 3, "start": 0, "end": 17}, ...]
EVENTS = "respec_drafter_events"  # on SGLang's Req; only on those that lived through a swap


def mark_swap(scheduler: Any, old_version: int) -> None:
    """Notes on every request under way how many of its tokens the old drafter saw."""
    requests = {*scheduler.collect_inflight_reqs(), *scheduler.waiting_queue}
    if scheduler.chunked_req is not None:
        requests.add(scheduler.chunked_req)
    for request in requests:
        if request.output_ids:
            events = request.__dict__.setdefault(EVENTS, [])
            events.append(WeightVersionEvent(str(old_version), len(request.output_ids)))


class RespecOutputStreamer(SchedulerOutputStreamer):
    """Adds the spans and the counts to what a finished request sends."""

    has_additional_customized_info = True
    drafter_version = 0
    requests_ended: Callable[[int], None] | None = None  # told how many ended with a step

    def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
        ended = sum(each.finished() for each in reqs)
        if not ended:
            return {}
        if self.requests_ended is not None:
            self.requests_ended(ended)
        return {KEY: [self._spans(each) for each in reqs], **step_counts(reqs)}

    def _spans(self, request: Any) -> list[dict[str, int]] | None:
        if not request.finished():
            return None
        spans = compute_weight_version_spans(
            getattr(request, EVENTS, []), str(self.drafter_version), request.finished_len
        )
        return [{"version": int(s.version), "start": s.start, "end": s.end} for s in spans]


def put_whole(
    original: Callable[..., None],
    meta_info: dict[str, Any],
    state: Any,
    key: str,
    values: Any,
) -> None:
    """Puts a finished request's spans and counts into its meta_info as they are.

    SGLang adds each of a plugin's lists up, and cuts it at the offset of an incremental stream, as
    what it has per token.
    """
    if key != KEY and key not in COUNT_KEYS:
        original(meta_info, state, key, values)
    elif values is not None:
        meta_info[key] = values
