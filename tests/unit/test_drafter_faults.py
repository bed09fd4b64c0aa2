"""Senders, disks and ranks that fail: the right status, one sentence, and serving goes on."""

from __future__ import annotations

import resource
import socket
import struct
import threading

import httpx
import pytest
from drafter_toys import make_file, wait_until
from local_server import refused, serve_local, unharmed

HEAD = "POST /update_drafter HTTP/1.1\nHost: localhost\n"


@pytest.fixture(scope="module")
def shared():
    with serve_local(drafter_stall_s=1) as server:
        yield server


@pytest.fixture
def server(shared):
    shared.engine.reset(1)
    return shared


def test_a_body_that_says_it_is_too_large(server):
    limit = server.get("/drafter").json()["max_push_bytes"]
    with server.raw(f"{HEAD}Content-Length: {limit + 1}\n\n") as connection:
        assert b" 413 " in connection.recv(4096)
    unharmed(server)


def test_a_body_that_turns_out_too_large(server):
    limit = server.get("/drafter").json()["max_push_bytes"]

    before = server.counted("too_large")

    def endless():
        for _ in range(limit // 65536 + 2):
            yield bytes(65536)

    with httpx.Client(trust_env=False) as client:
        try:
            answer = client.post(f"{server.url}/update_drafter", content=endless())
        except httpx.TransportError:
            answer = None  # the server closed the connection while more was being sent
    assert answer is None or answer.status_code == 413
    wait_until(lambda: server.counted("too_large") > before)
    unharmed(server)


def test_a_sender_that_stalls(server):
    content = make_file(1.0)
    head = f"{HEAD}Content-Length: {len(content)}\n\n"
    with server.raw(head, content[:100]) as connection:
        assert b" 408 " in connection.recv(4096)
    unharmed(server)


def test_a_sender_that_dies(server):
    content = make_file(1.0)
    connection = server.raw(f"{HEAD}Content-Length: {len(content)}\n\n", content[:100])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    before = server.counted("sender_left")
    connection.close()
    wait_until(lambda: server.counted("sender_left") == before + 1)
    unharmed(server)


def test_two_senders(server):
    content = make_file(1.0)
    head = f"{HEAD}Content-Length: {len(content)}\n\n"
    with server.raw(head, content[:100]) as first:
        wait_until(lambda: server.get("/drafter").json()["pushing"])
        refused(server.push(make_file(2.0)), 409, "busy")
        second: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: second.append(server.push(make_file(2.0), wait="true"))
        )
        thread.start()
        first.sendall(content[100:])
        assert b" 200 " in first.recv(4096)
        thread.join()
    assert second[0].json()["version"] == 2
    assert server.engine.serving_value() == {2.0}


def test_a_full_disk(server):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        refused(server.push(make_file(1.0)), 507, "disk_full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    unharmed(server)


def test_ranks_that_cannot_stage():
    with serve_local(ranks=2) as server:

        def fail(rank: int) -> None:
            if rank == 1:
                raise MemoryError("no room on rank 1")

        server.engine.before_staging.append(fail)
        error = refused(server.push(make_file(1.0)), 503, "staging_failed")
        assert "no room on rank 1" in error["message"]
        server.engine.before_staging.clear()
        unharmed(server)


def test_staging_that_does_not_end():
    with serve_local(drafter_push_s=1) as server:
        gate = threading.Event()
        server.engine.before_staging.append(lambda rank: gate.wait(20))
        refused(server.push(make_file(1.0)), 503, "staging_failed")
        refused(server.push(make_file(2.0)), 503, "staging_failed")  # the first still stages
        gate.set()
        wait_until(lambda: server.engine.swaps[0]._staging.readiness != "staging")
        server.engine.before_staging.clear()
        unharmed(server)
