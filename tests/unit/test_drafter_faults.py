"""Senders, disks and ranks that fail: the right status, one sentence, and serving goes on."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from drafter_toys import make_file, wait_until
from local_server import refused, serve_local, unharmed

from respec_server.client import DrafterClient, PushFailed

TOY_SERVER = Path(__file__).parents[1] / "toys" / "toy_server.py"

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


SENDER = """
import socket, sys, time
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.sendall(sys.stdin.buffer.read())
print("sent", flush=True)
time.sleep(60)
"""


def test_a_sender_that_is_killed(server):
    content = make_file(1.0)
    head = f"{HEAD}Content-Length: {len(content)}\n\n".replace("\n", "\r\n").encode()
    before = server.counted("sender_left")
    with subprocess.Popen(
        [sys.executable, "-c", SENDER, str(server.port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as sender:  # fmt: skip
        sender.stdin.write(head + content[:-1])
        sender.stdin.close()
        assert sender.stdout.readline() == b"sent\n"
        wait_until(lambda: server.get("/drafter").json()["pushing"])
        sender.kill()
    wait_until(lambda: server.counted("sender_left") == before + 1)
    unharmed(server)


def test_a_sender_that_never_stalls_and_never_ends():
    with serve_local(drafter_stall_s=5, drafter_push_s=1) as server:
        with server.raw(f"{HEAD}Content-Length: 300\n\n") as connection:
            connection.settimeout(0.05)
            answer = b""
            while not answer:
                connection.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    answer = connection.recv(4096)
        assert b" 408 " in answer
        assert server.counted("stalled") == 1
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


def test_a_full_disk_while_a_path_is_copied(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(make_file(1.0))
    with serve_local(drafter_dir=str(tmp_path)) as server:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        try:
            body = {"path": "a.safetensors"}
            answer = httpx.post(f"{server.url}/update_drafter", json=body, trust_env=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        error = refused(answer, 507, "disk_full")
        assert "--respec-drafter-spool-dir" in error["message"]
        unharmed(server)


@contextlib.contextmanager
def toy_process(spool: Path, gate: Path):
    program = [sys.executable, str(TOY_SERVER), str(spool), str(gate)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_server_that_is_killed_between_stage_and_commit(tmp_path):
    """The first drafter serves again, nothing is left of the push, and it can be repeated."""
    spool, gate = tmp_path / "spool", tmp_path / "gate"
    content, failed = make_file(5.0), []

    def push(url: str) -> None:
        try:
            DrafterClient(url, retries=0).push(content)
        except PushFailed as error:
            failed.append(error.report.failed[url])

    with toy_process(spool, gate) as (process, url):
        thread = threading.Thread(target=push, args=(url,))
        thread.start()
        wait_until(lambda: any(spool.glob("*/*.safetensors")))
        wait_until(lambda: httpx.get(f"{url}/drafter", trust_env=False).json()["pushing"])
        process.kill()
        thread.join()
    assert failed[0].status is None
    assert failed[0].message
    left = set(spool.glob("*/*"))
    assert left, "a killed server cannot clean up"

    gate.touch()
    with toy_process(spool, gate) as (_, url):
        assert not left & set(spool.glob("*/*"))
        assert httpx.get(f"{url}/drafter", trust_env=False).json()["serving"] == 0
        answer = DrafterClient(url).push(content).applied[url]
        assert (answer["status"], answer["version"]) == ("applied", 1)


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
