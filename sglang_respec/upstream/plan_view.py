"""What the scheduler says of its steps: the policy's table, the counts, the metrics.

Read between two steps, from what is kept anyway; no step waits for it.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.runtime_context import get_observability, get_parallel

from sglang_respec.core import PLAN_REASONS
from sglang_respec.planner import Planner
from sglang_respec.step_book import StepBook
from sglang_respec.upstream.drafter_spans import RespecOutputStreamer
from sglang_respec.upstream.plan_ipc import PlanReqInput, PlanReqOutput

NO_DRAFTER = "This server has no EAGLE-3 drafter and plans nothing; start it with --drafter-path."


def attach_plan_view(scheduler: Any) -> None:
    """Adds the questions to SGLang's dispatcher."""
    view = PlanView(scheduler)
    scheduler._request_dispatcher._mapping[PlanReqInput] = view.handle


class PlanView:
    """One scheduler's answers. Its worker may be none that plans."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._worker = scheduler.draft_worker
        self._plans = hasattr(self._worker, "watching")
        if self._plans and get_observability().enable_metrics and get_parallel().tp_rank == 0:
            # Its client must not be imported before SGLang has said where processes share files.
            from sglang_respec.upstream.plan_metrics import PlanMetrics

            metrics = PlanMetrics(self._book, self._ring_bytes)
            self._worker.watching.on_step = metrics.step_finished
            RespecOutputStreamer.requests_ended = metrics.requests_ended

    def handle(self, request: PlanReqInput) -> PlanReqOutput:
        """Answers whatever it is sent: an exception here would end the server."""
        if not self._plans:
            return PlanReqOutput(ok=False, body={"error": NO_DRAFTER})
        answer = self.plan if request.question == "plan" else self.state
        return PlanReqOutput(ok=True, body=answer())

    @property
    def _book(self) -> StepBook:
        book: StepBook = self._worker.watching.book
        return book

    @property
    def _ring_bytes(self) -> int:
        tap = self._worker.draft_worker.tap
        return 0 if tap is None else int(tap.ring_bytes)

    def plan(self) -> dict[str, Any]:
        """The policy's own table, what was measured beside it, and the last switches."""
        book, table = self._book, self._worker.watching.policy.table()
        reason = table["reason"]
        return {
            "setting": self._worker.settings.policy,
            "acceptance": [],
            "rows": [],
            **table,
            "reason_meaning": PLAN_REASONS[reason],
            "measured": book.facts()["configs"],
            "measured_depths": book.depth_facts(),
            "last_switches": book.switch_facts(),
        }

    def state(self) -> dict[str, Any]:
        worker, book = self._worker, self._book
        current = book.current
        return {
            "policy": worker.settings.policy,
            "own": str(worker.own),
            "held": [str(each) for each in worker.configs],
            "current": None if current is None else str(current.config),
            "reason": None if current is None else current.reason,
            "running_requests": len(self._scheduler.running_batch.reqs),
            "tap": self._tap(),
            "profile": self._profile(),
            "drafter_version": self._scheduler.output_streamer.drafter_version,
            **book.facts(),
        }

    def _tap(self) -> dict[str, Any]:
        settings, tap = self._worker.settings, self._worker.draft_worker.tap
        return {
            "ring_bytes": self._ring_bytes,
            "window_tokens": 0 if tap is None else tap.window,
            "slots": 0 if tap is None else len(tap.gap),
            "overflow": settings.tap_overflow,
            "plain_prefill": settings.plain_prefill,
        }

    def _profile(self) -> dict[str, Any] | None:
        policy = self._worker.watching.policy
        if not isinstance(policy, Planner):
            return None
        profile = policy.cost.profile
        return {
            "path": self._worker.settings.profile,
            "kind": profile.kind,
            "source": profile.source,
            "held_out_relative_error": profile.relative_error,
            "graph_bytes": {str(config): size for config, size in profile.graph_bytes.items()},
        }
