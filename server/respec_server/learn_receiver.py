"""The learner's own HTTP door: rollouts from servers, rewards from trainers, its status.

It checks a chunk's header and leaves it in the spool, so that it costs no more than writing a
file; what is in it is the learner's business. Needs no torch.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from respec_server.access import require_admin
from respec_server.receive import receive_body
from respec_server.refusal import Refusal
from respec_server.routes import RefusingRoute
from sglang_respec.errors import RespecError
from sglang_respec.learner.chunk_format import MAX_ID_CHARS, BadChunk, check_header
from sglang_respec.learner.rewards import Reward, RewardBook
from sglang_respec.learner.spool import Spool

MAX_REWARDS = 4096  # of one request
MAX_REWARDS_BYTES = MAX_REWARDS * 1024
STALL_S = 30.0
BODY_S = 600.0

Finite = Annotated[float, Field(allow_inf_nan=False)]


class RewardBody(BaseModel):
    """What a trainer says about one rollout."""

    model_config = ConfigDict(extra="forbid")

    request_id: str = Field(
        min_length=1, max_length=MAX_ID_CHARS, description="`rid` of the request, or `id`."
    )
    reward: Finite
    advantage: Finite | None = Field(
        default=None, description="The trainer's own; else from the rewards of the group."
    )
    group: str = Field(
        default="", max_length=MAX_ID_CHARS, description="The same for rollouts of one prompt."
    )


class RewardsBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rewards: list[RewardBody] = Field(min_length=1, max_length=MAX_REWARDS)


def make_app(
    spool: Spool,
    book: RewardBook,
    status: Callable[[], dict[str, Any]],
    *,
    admin_key: str | None,
    max_chunk_bytes: int,
) -> FastAPI:
    """The routes. Without a key only this machine may post."""
    router = APIRouter(route_class=RefusingRoute, tags=["learner"])

    def admin(request: Request) -> None:
        require_admin(request.headers, request.client.host if request.client else None, admin_key)

    @router.post("/samples", status_code=202, dependencies=[Depends(admin)])
    async def samples(request: Request) -> dict[str, int]:
        """One chunk of rollouts, a safetensors body."""
        if "content-encoding" in request.headers:
            raise Refusal(415, "compressed", "Send the body without Content-Encoding.")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > max_chunk_bytes:
            raise _too_large(max_chunk_bytes)
        with spool.incoming() as path:
            try:
                await receive_body(
                    request.stream(), path, limit=max_chunk_bytes, stall_s=STALL_S,
                    deadline=time.monotonic() + BODY_S,
                )  # fmt: skip
            except Refusal as refusal:
                if refusal.status != 413:  # whose sentence speaks of drafters
                    raise
                raise _too_large(max_chunk_bytes) from refusal
            try:
                await asyncio.to_thread(check_header, path)
            except BadChunk as error:
                raise Refusal(400, "bad_chunk", str(error)) from error
        return {
            "chunks_waiting": len(spool.waiting()),
            "chunks_dropped": spool.dropped_chunks,
        }

    @router.post("/rewards", status_code=202, dependencies=[Depends(admin)])
    async def rewards(request: Request) -> dict[str, int]:
        """Rewards by request id, in any order, before or after their rollouts."""
        body = bytearray()
        async for block in request.stream():
            body += block
            if len(body) > MAX_REWARDS_BYTES:
                raise _too_large(MAX_REWARDS_BYTES)
        posted = RewardsBody.model_validate_json(bytes(body)).rewards
        book.post(
            [Reward(r.request_id, r.reward, r.advantage, r.group) for r in posted],
            time.monotonic(),
        )
        return {"accepted": len(posted)}

    @router.get("/status")
    async def show_status() -> dict[str, Any]:
        """Updates, judgements, counters of every stage."""
        return status()

    app = FastAPI(title="respec learn", docs_url=None, redoc_url=None)
    app.include_router(router)
    return app


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"Bodies are at most {limit} bytes; send smaller ones.")


class Door:
    """The app on a port, in a thread of its own, for the length of a `with` block."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        """port 0: any free one. Raises `RespecError` where the port is taken."""
        try:
            self._listener = socket.create_server((host, port))
        except OSError as error:
            raise RespecError(
                f"The learner cannot listen on {host}:{port} ({error.strerror}); give another "
                "--port."
            ) from error
        self.host, self.port = host, int(self._listener.getsockname()[1])
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self._thread = threading.Thread(
            target=self._server.run, args=([self._listener],), name="respec-door", daemon=True
        )

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> Door:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()
