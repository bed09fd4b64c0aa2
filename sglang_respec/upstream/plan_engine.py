"""The HTTP process's side of `GET /respec/plan` and `/respec/state`: asks the scheduler."""

from __future__ import annotations

import asyncio
from typing import Any

from sglang.srt.managers.communicator import FanOutCommunicator
from sglang.srt.runtime_context import get_parallel
from sglang.utils import TypeBasedDispatcher

from sglang_respec.errors import RespecError
from sglang_respec.upstream.plan_ipc import PlanReqInput, PlanReqOutput, Question


class PlanEngine:
    """What `respec_server.plan_routes` needs of a running engine."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._call: Any = FanOutCommunicator(manager._dispatch_to_scheduler, 1)
        manager._result_dispatcher += TypeBasedDispatcher([(PlanReqOutput, self._call.handle_recv)])

    async def ask(self, question: Question, timeout_s: float) -> dict[str, Any]:
        """The scheduler's answer, plain JSON values; it answers between two steps.

        Raises `RespecError` where it has none, and `TimeoutError`.
        """
        if get_parallel().num_dp_ranks != 1:
            raise RespecError(
                "A server with data parallelism has a plan per replica and cannot tell of one; "
                "start one server per replica and ask each."
            )
        self._manager.auto_create_handle_loop()
        # Shielded: an answer that nobody waits for would be taken for that of the next call.
        call = asyncio.shield(self._call(PlanReqInput(question=question)))
        (answer,) = await asyncio.wait_for(call, timeout_s)
        if not answer.ok:
            raise RespecError(answer.body["error"])
        body: dict[str, Any] = answer.body
        return body
