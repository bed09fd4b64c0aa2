"""`/health` answers at once from the scheduler's heartbeat, and tells when it has stopped."""

import os
import signal
import time

import httpx
import pytest
from serving import Servers, scheduler_processes, speculation

from respec_server.process import ServerProcess

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(servers: Servers) -> ServerProcess:
    return servers.get(*speculation(5, 1, 6))


def status(server: ServerProcess, path: str = "/health") -> int:
    return httpx.get(server.url + path, timeout=60, trust_env=False).status_code


def until(server: ServerProcess, wanted: int) -> None:
    for _ in range(600):  # SGLang's limit is 20 s
        if status(server) == wanted:
            return
        time.sleep(0.2)
    raise AssertionError(f"/health never answered {wanted}")


def test_it_needs_no_generation_and_notices_a_scheduler_that_hangs(server: ServerProcess) -> None:
    assert status(server) == 200
    assert status(server, "/health_generate") == 200
    stopped = scheduler_processes(server)
    for each in stopped:
        os.kill(each.pid, signal.SIGSTOP)
    try:
        # Nobody could generate a token now; SGLang's own check would end with 503.
        assert status(server) == 200
        until(server, 503)
        assert status(server, "/ready") == 503
    finally:
        for each in stopped:
            os.kill(each.pid, signal.SIGCONT)
    until(server, 200)
    assert status(server, "/ready") == 200
    assert status(server, "/health_generate") == 200
