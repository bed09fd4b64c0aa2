"""A drafter that is worth less goes by itself, over real HTTP."""

from __future__ import annotations

import asyncio
import threading

import pytest
from drafter_toys import make_file, wait_until
from local_server import LocalServer, refused, serve_local


def verify(server: LocalServer, accepted: int, steps: int) -> None:
    """Verify steps of four requests, as the scheduler would report them."""
    loop = server.app.state.loop
    for _ in range(steps):
        loop.call_soon_threadsafe(server.engine.verify, 4 * accepted, 4)
    done = threading.Event()
    loop.call_soon_threadsafe(done.set)
    assert done.wait(10)


@pytest.fixture
def guarded():
    with serve_local() as server:

        @server.app.get("/loop")
        async def loop() -> None:
            server.app.state.loop = asyncio.get_running_loop()

        server.get("/loop")
        yield server


def test_a_worse_drafter_is_taken_back_by_itself(guarded):
    verify(guarded, 3, 60)
    pushed = guarded.push(make_file(1.0), version="bad", guard_verifies=100).json()
    assert pushed["guard"]["verdict"] == "watching"
    verify(guarded, 0, 60)
    wait_until(lambda: guarded.get("/drafter").json()["serving"] == 2)
    assert guarded.engine.serving_value() == {0.0}
    state = guarded.get("/drafter").json()
    assert [(v["origin"], v["verdict"]) for v in state["versions"]] == [
        ("start", ""), ("push", "worse"), ("guard", ""),
    ]  # fmt: skip
    assert state["versions"][1]["accepted_length"] == 1.0
    assert guarded.metric("drafter_rollbacks_total", by="guard") == 1
    refused(guarded.push(make_file(1.0)), 409, "rolled_back")
    assert guarded.push(make_file(1.0), guard="off").json()["applied"]


def test_a_drafter_as_good_stays(guarded):
    verify(guarded, 3, 60)
    guarded.push(make_file(1.0), guard_verifies=100)
    verify(guarded, 3, 60)
    state = guarded.get("/drafter").json()
    assert (state["serving"], state["guard"]["verdict"]) == (1, "kept")
    assert state["versions"][1]["accepted_length"] == 4.0
