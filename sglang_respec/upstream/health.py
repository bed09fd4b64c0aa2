"""`GET /health` answers at once: from a heartbeat of the scheduler that beats whether asked or not.

Symptom: `/health` took 1.0 s on an idle server and up to 5.2 s while drafters were pushed to a busy
one, longer than many probes wait, so that a healthy server is restarted.
Cause: SGLang generates a token for each call and looks for it every second, and on a busy server
that waits behind everything else.
Removal condition: SGLang answers `/health` without generating, from what it knows.

`/health_generate` stays SGLang's own and generates a token, for who wants the deep check.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import Response
from sglang.srt.entrypoints.http_server import HEALTH_CHECK_TIMEOUT
from sglang.srt.managers.tokenizer_manager import ServerStatus

from sglang_respec.upstream.drafter_ipc import HeartbeatReqInput

PATH = "/health"
BEAT_S = 1.0  # between two beats: one message of a few bytes each way
FIRST_LOOK_S = 0.01


def mount_health(app: Any, manager: Any) -> None:
    """Our route before SGLang's of the same path. The scheduler's side is in `drafter_control`."""
    heartbeat = Heartbeat(manager)
    app.add_api_route(PATH, heartbeat.health, methods=["GET"], include_in_schema=False)
    routes = app.router.routes
    routes.insert(0, routes.pop())


class Heartbeat:
    """When the scheduler was last heard of, by whatever message."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._task: asyncio.Task[None] | None = None
        self._seen: float = 0.0  # SGLang's time stamp of the last message, as it stood then
        self._heard_s = 0.0  # on the clock of `monotonic`, which nobody sets

    async def health(self) -> Response:
        """200 while the scheduler's loop turns, 503 before the start, at the end, and when it has
        not been heard of for SGLang's own time limit (SGLANG_HEALTH_CHECK_TIMEOUT, 20 s)."""
        manager = self._manager
        if manager.gracefully_exit or manager.server_status == ServerStatus.Starting:
            return Response(status_code=503)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._beat())
        if not self._heard_s:
            await self._first_beat()
        alive = self._silent_s() < HEALTH_CHECK_TIMEOUT
        # As SGLang's own check does; /ready and /ping answer from it.
        manager.server_status = ServerStatus.Up if alive else ServerStatus.UnHealthy
        return Response(status_code=200 if alive else 503)

    async def _first_beat(self) -> None:
        """An idle server was last heard of at any time before: for once, wait for the answer."""
        deadline = time.monotonic() + HEALTH_CHECK_TIMEOUT
        while not self._heard_s and time.monotonic() < deadline:
            await asyncio.sleep(FIRST_LOOK_S)
            self._listen()

    async def _beat(self) -> None:
        self._manager.auto_create_handle_loop()
        self._seen = self._manager.last_receive_tstamp
        while True:
            # One at a time: a scheduler that hangs finds one message when it comes back.
            self._manager._dispatch_to_scheduler(HeartbeatReqInput())
            asked = self._seen
            while self._seen == asked:
                await asyncio.sleep(BEAT_S)
                self._listen()

    def _silent_s(self) -> float:
        self._listen()
        return time.monotonic() - self._heard_s if self._heard_s else float("inf")

    def _listen(self) -> None:
        stamp = self._manager.last_receive_tstamp
        if stamp != self._seen:
            self._seen, self._heard_s = stamp, time.monotonic()
