"""The drafter routes over real HTTP, with the toy drafter behind them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from drafter_toys import LocalEngine, make_file
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

import respec_server.routes
from respec_server.push_metrics import PushMetrics
from sglang_respec.config import RespecConfig


@dataclass
class LocalServer:
    engine: LocalEngine
    port: int
    registry: CollectorRegistry
    app: FastAPI
    spool: Path  # pushed files lie under it while they are under way

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def counted(self, result: str) -> int:
        """Pushes that ended so."""
        return int(self.get("/drafter").json()["pushes"].get(result, 0))

    def push(self, content: bytes, headers: dict[str, str] | None = None, **params: object):
        return httpx.post(
            f"{self.url}/update_drafter", content=content, params=params, headers=headers or {},
            timeout=30, trust_env=False,
        )  # fmt: skip

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, trust_env=False)

    def rollback(self, **body: object) -> httpx.Response:
        return httpx.post(f"{self.url}/drafter/rollback", json=body, timeout=30, trust_env=False)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"sglang_respec:{name}", labels) or 0.0

    def raw(self, head: str, body: bytes = b"") -> socket.socket:
        """A connection that has sent this much of a request."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.sendall(head.replace("\n", "\r\n").encode() + body)
        return connection


@contextlib.contextmanager
def serve_local(
    *, ranks: int = 1, keep: int = 3, admin_key: str | None = None, **settings: object
) -> Iterator[LocalServer]:
    """settings: of `RespecConfig`."""
    engine, registry = LocalEngine(ranks, keep), CollectorRegistry()
    app = FastAPI()
    spool = Path(str(settings.setdefault("drafter_spool_dir", tempfile.mkdtemp())))
    config = RespecConfig.from_mapping(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(respec_server.routes, "PushMetrics", lambda: PushMetrics(registry))
        router = respec_server.routes.make_router(engine, config, admin_api_key=admin_key)
    app.include_router(router)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield LocalServer(engine, listener.getsockname()[1], registry, app, spool)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        shutil.rmtree(spool)


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer that must be a refusal of this kind, in one sentence."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]
    assert "\n" not in error["message"]
    assert "Traceback" not in answer.text
    return error


def unharmed(server: LocalServer, serving: int = 0, value: float = 0.0) -> None:
    """Nothing was changed, nothing is left behind, and a good push works."""
    assert server.engine.serving_value() == {value}
    assert server.get("/drafter").json()["serving"] == serving
    assert not list(server.spool.glob("*/*"))
    answer = server.push(make_file(7.0), guard="off", wait="true")
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == serving + 1
    assert server.engine.serving_value() == {7.0}
