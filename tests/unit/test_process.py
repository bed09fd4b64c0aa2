"""A server as a child process, with a small HTTP server standing in for SGLang."""

from __future__ import annotations

import signal
import sys
import time

import httpx
import psutil
import pytest

from respec_server.process import ServerFailed, ServerProcess, free_port

# Answers /health with 503 for a moment, then 200; starts a child, as SGLang starts schedulers.
SERVER = """
import http.server, os, subprocess, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
print("interpret", os.environ.get("TRITON_INTERPRET"), flush=True)
print("extra", os.environ.get("EXTRA"), flush=True)
started = time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() - started > 0.3 else 503)
        self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER


def make(tmp_path, code=SERVER, **options) -> ServerProcess:
    command = (sys.executable, "-c", code)
    return ServerProcess([], command=command, log=tmp_path / "server.log", **options)


def lives(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody waited for yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def logged(server: ServerProcess, name: str) -> str:
    return next(
        line.split(" ", 1)[1] for line in server.log_tail().splitlines() if line.startswith(name)
    )


def test_starts_answers_and_stops_its_whole_tree(tmp_path):
    with make(tmp_path) as server:
        assert httpx.get(server.url + "/health").status_code == 200
        pids = [server.pid, int(logged(server, "child"))]
        assert all(lives(pid) for pid in pids)
    assert not any(lives(pid) for pid in pids)


def test_other_processes_of_ours_live_on(tmp_path):
    with psutil.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        with make(tmp_path):
            pass
        assert bystander.is_running()
        bystander.kill()


def test_a_server_that_ends_early_shows_its_last_lines(tmp_path):
    code = "import sys; print('first'); sys.exit('no such model')"
    with pytest.raises(ServerFailed, match=r"code 1(.|\n)*no such model"), make(tmp_path, code):
        pass


def test_a_server_that_never_answers_is_stopped(tmp_path):
    code = "import time; print('loading', flush=True); time.sleep(600)"
    server = make(tmp_path, code, ready_timeout_s=0.5)
    with pytest.raises(ServerFailed, match=r"did not answer(.|\n)*loading"), server:
        pass
    with pytest.raises(RuntimeError, match="not started"):
        _ = server.pid


def test_waiting_is_reported(tmp_path):
    seconds: list[float] = []
    server = make(tmp_path)
    try:
        server.start().wait_until_ready(seconds.append)
    finally:
        server.stop()
    assert seconds
    assert seconds == sorted(seconds)


def test_the_environment_of_the_child(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with make(tmp_path, environ={"EXTRA": "yes"}) as server:
        assert logged(server, "interpret") == "None"
        assert logged(server, "extra") == "yes"


def test_an_empty_value_removes_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("EXTRA", "inherited")
    with make(tmp_path, environ={"EXTRA": ""}) as server:
        assert logged(server, "extra") == "None"


def test_a_server_deaf_to_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("respec_server.process.TERMINATE_S", 0.3)
    with make(tmp_path, STUBBORN) as server:
        pids = [server.pid, int(logged(server, "child"))]
    assert not any(lives(pid) for pid in pids)


def test_children_of_a_crashed_server_are_stopped(tmp_path):
    server = make(tmp_path).start().wait_until_ready()
    child = int(logged(server, "child"))
    psutil.Process(server.pid).send_signal(signal.SIGKILL)
    time.sleep(0.2)
    assert lives(child)
    server.stop()
    assert not lives(child)


def test_stopping_twice_or_before_the_start_does_nothing(tmp_path):
    server = make(tmp_path)
    server.stop()
    server.start()
    server.stop()
    server.stop()


def test_started_once(tmp_path):
    with make(tmp_path) as server, pytest.raises(RuntimeError, match="already"):
        server.start()


def test_ports_are_free_and_on_loopback(tmp_path):
    port = free_port()
    assert 1024 <= port < 65536
    assert ServerProcess([], log=tmp_path / "log").url.startswith("http://127.0.0.1:")
