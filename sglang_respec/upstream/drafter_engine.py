"""The HTTP process's side of drafter swaps: sends operations to the scheduler, awaits answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.communicator import FanOutCommunicator
from sglang.srt.runtime_context import get_parallel
from sglang.utils import TypeBasedDispatcher

from sglang_respec.errors import RespecError
from sglang_respec.upstream.drafter_ipc import (
    DrafterReqInput,
    DrafterReqOutput,
    DrafterVerdictReqOutput,
)


class DrafterEngine:
    """What `respec_server` needs of a running engine. See `respec_server.service.Engine`."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._call: Any = FanOutCommunicator(manager._dispatch_to_scheduler, 1)
        manager._result_dispatcher += TypeBasedDispatcher(
            [
                (DrafterReqOutput, self._call.handle_recv),
                (DrafterVerdictReqOutput, self._on_verdict_message),
            ]
        )
        self._on_verdict: Callable[[int, int], None] = lambda version, fallback: None

    def on_verdict(self, callback: Callable[[int, int], None]) -> None:
        """callback(version, fallback) is called on the event loop when the guard finds a drafter
        worse than the one on which it measured its baseline, `fallback`."""
        self._on_verdict = callback

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One operation on all ranks. Raises `RespecError` with what the scheduler said.

        Does not take SGLang's lock for weight updates, which waits until no request runs.
        """
        if get_parallel().num_dp_ranks != 1:
            raise RespecError(
                "Drafters cannot be pushed to a server with data parallelism; start one server "
                "per replica and push to each."
            )
        self._manager.auto_create_handle_loop()
        # Shielded: an answer that nobody waits for would be taken for that of the next call.
        (answer,) = await asyncio.shield(
            self._call(DrafterReqInput(operation=operation, arguments=arguments))
        )
        if not answer.ok:
            raise RespecError(answer.body["error"])
        body: dict[str, Any] = answer.body
        return body

    def _on_verdict_message(self, message: DrafterVerdictReqOutput) -> None:
        self._on_verdict(message.version, message.fallback)
