"""A server as a child process: start it, wait until it answers, stop exactly what was started."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import httpx
import psutil  # type: ignore[import-untyped]

from sglang_respec.errors import RespecError

RESPEC_SERVE = (sys.executable, "-m", "respec_server", "serve")
READY_TIMEOUT_S = 300.0
POLL_S = 1.0
PORTS = (20_000, 32_768)
PORT_TRIES = 200
TERMINATE_S = 20.0  # SGLang drains its requests on SIGTERM
ORPHAN_S = 1.0  # what is left then is an orphan and hears of no shutdown
KILL_S = 5.0
TAIL_LINES = 30
TAIL_COLUMNS = 500  # SGLang logs all its arguments in one line


class ServerFailed(RespecError):  # noqa: N818 (it is what happened, not a kind of error)
    """The server ended, or did not answer in time. The message ends with its last log lines."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now.

    Below those that systems give to outgoing connections (32768 and up on Linux): a server takes
    half a minute until it binds, and a connection of any process could have the port by then.
    """
    draw = random.SystemRandom()  # not the seeded one, which two processes may share
    for _ in range(PORT_TRIES):
        port = draw.randrange(*PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise RespecError(
        f"No free port was found on {host} from {PORTS[0]} to {PORTS[1] - 1}; name one."
    )


class ServerProcess:
    """One server on a loopback port, with its log in a file.

    >>> with ServerProcess(["--demo"]) as server:
    ...     httpx.get(server.url + "/v1/models")
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        command: Sequence[str] = RESPEC_SERVE,
        host: str = "127.0.0.1",
        port: int | None = None,
        environ: Mapping[str, str] | None = None,
        log: str | os.PathLike[str] | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        """``environ`` is laid over this process's environment; an empty value removes a name."""
        self.host = host
        self.port = free_port(host) if port is None else port
        self.log = Path(log) if log else Path(tempfile.gettempdir()) / f"respec-{self.port}.log"
        self.ready_timeout_s = ready_timeout_s
        self._command = [*command, *arguments, "--host", host, "--port", str(self.port)]
        self._environ = _child_environ(environ or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._tree: dict[int, psutil.Process] = {}

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> ServerProcess:
        """Start the process; it is not ready yet."""
        if self._process is not None:
            raise RuntimeError("the server was started already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            # Its own session: Ctrl-C in a terminal reaches us alone, and we stop it in order.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            )
        return self

    def wait_until_ready(self, on_wait: Callable[[float], None] | None = None) -> ServerProcess:
        """Return when the server answers; ``on_wait`` is told the seconds waited so far."""
        process = self._running()
        started = time.monotonic()
        # A health check generates one token, which is slow when the machine is busy.
        with httpx.Client(base_url=self.url, timeout=30.0, trust_env=False) as client:
            while True:
                self._remember_tree()
                waited = time.monotonic() - started
                if process.poll() is not None:
                    raise ServerFailed(
                        f"The server ended with code {process.returncode} after {waited:.0f} s; "
                        f"its log is {self.log}.\n{self.log_tail()}"
                    )
                if _answers(client):
                    return self
                if waited > self.ready_timeout_s:
                    raise ServerFailed(
                        f"The server did not answer within {self.ready_timeout_s:.0f} s; raise "
                        f"the limit or read its log, {self.log}.\n{self.log_tail()}"
                    )
                if on_wait is not None:
                    on_wait(waited)
                time.sleep(POLL_S)

    def log_tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of the log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(line[:TAIL_COLUMNS] for line in text.splitlines()[-lines:])

    def stop(self) -> None:
        """Stop the process and all it started: SIGTERM, then SIGKILL to what is left."""
        process = self._process
        if process is None:
            return
        self._remember_tree()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(TERMINATE_S)
            except subprocess.TimeoutExpired:
                self._remember_tree()
                process.kill()
                process.wait()
        # psutil compares start times, so a reused pid is never signalled.
        left = [each for each in self._tree.values() if _lives(each)]
        _, left = psutil.wait_procs(left, timeout=ORPHAN_S)
        for each in left:
            _kill(each)
        psutil.wait_procs(left, timeout=KILL_S)
        self._process = None
        self._tree.clear()

    def __enter__(self) -> ServerProcess:
        self.start()
        try:
            return self.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server is not started")
        return self._process

    def _remember_tree(self) -> None:
        """Note the descendants while their parents live: an orphan has no path back to us."""
        try:
            children = psutil.Process(self._running().pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self._tree.update((child.pid, child) for child in children)


def _child_environ(changes: Mapping[str, str]) -> dict[str, str]:
    # Kernel tests run Triton in its interpreter; a server must never inherit that.
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ.update(changes)
    return {name: value for name, value in environ.items() if value != "" or name not in changes}


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == httpx.codes.OK
    except httpx.TransportError:  # nobody listens yet, or it is too busy to answer
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
