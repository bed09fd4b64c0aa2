"""Starting and sharing real servers."""

import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil
import pytest

from respec_server.bundled import demo_models
from respec_server.cpu_environ import CPU_ENVIRON
from respec_server.device import cuda_devices
from respec_server.process import RESPEC_SERVE, ServerProcess

Program = Literal["respec", "sglang"]
SGLANG_SERVE = (str(Path(sys.executable).with_name("sglang")), "serve")
LAUNCHPAD = str(Path(__file__).with_name("launchpad.py"))
# Three at most: plain, a chain and a tree; each holds a gigabyte and a half.
ALIVE = 3

# A rank needs a device of its own; without GPUs, a core. One GPU beside many cores is one device.
two_devices = pytest.mark.skipif(
    cuda_devices()[0] == 1 or (os.cpu_count() or 1) < 2, reason="two ranks need two devices"
)


class Servers:
    """Starts servers on demand and stops the one asked for least recently."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._alive: OrderedDict[tuple[object, ...], ServerProcess] = OrderedDict()
        self._launchpad: subprocess.Popen[bytes] | None = None
        # A socket's path must be short; pytest's folders are not.
        self._socket = str(Path(tempfile.mkdtemp(prefix="respec-")) / "launchpad")

    def get(
        self,
        *arguments: str,
        stock: bool = False,
        program: Program = "respec",
        environ: Mapping[str, str] | None = None,
    ) -> ServerProcess:
        """A running server with these flags: of the demo target, unless they name another.

        program: whose `serve` starts it. stock: SGLang's, with SGLANG_RESPEC=0.
        """
        program = "sglang" if stock else program
        environ = {**(environ or {}), **({"SGLANG_RESPEC": "0"} if stock else {})}
        key = (program, *arguments, *environ.items())
        if key not in self._alive:
            while len(self._alive) >= ALIVE:
                _, oldest = self._alive.popitem(last=False)
                oldest.stop()
            self._alive[key] = self._start(arguments, program, environ)
        self._alive.move_to_end(key)
        return self._alive[key]

    def _start(
        self, arguments: Sequence[str], program: Program, environ: Mapping[str, str]
    ) -> ServerProcess:
        target, _ = demo_models()
        flags = ["--model-path", str(target), *arguments]
        if "--dtype" not in arguments:
            flags += ["--dtype", "float32"]
        settings = self._logs.parent / "respec.toml"
        # Threads as the demo has it; a server that names no policy keeps its shape.
        settings.write_text('portable_threads = 1\npolicy = "always"\n', encoding="utf-8")
        # All of it, or `respec serve` would start anew, outside of the launchpad.
        environ = {**CPU_ENVIRON, "SGLANG_RESPEC_CONFIG": str(settings), **environ}
        log = self._logs / f"server-{len(list(self._logs.iterdir()))}.log"
        server = ServerProcess(flags, command=self.command(program), environ=environ, log=log)
        server.start()
        try:
            return server.wait_until_ready()
        except BaseException:
            server.stop()
            raise

    def command(self, program: Program) -> Sequence[str]:
        """What starts `respec serve`, or SGLang's own `sglang serve`."""
        if cuda_devices()[0]:  # a process that may have touched CUDA is not forked
            return SGLANG_SERVE if program == "sglang" else RESPEC_SERVE
        return self._fork(program, "serve")

    def python(self, *arguments: str) -> Sequence[str]:
        """What runs `python` with these arguments, with SGLang imported already."""
        if cuda_devices()[0]:
            return (sys.executable, *arguments)
        return self._fork("python", *arguments)

    def _fork(self, *command: str) -> Sequence[str]:
        if self._launchpad is None:
            environ = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
            with (self._logs.parent / "launchpad.log").open("wb") as log:
                self._launchpad = subprocess.Popen(
                    [sys.executable, LAUNCHPAD, "serve", self._socket],
                    env={**environ, **CPU_ENVIRON},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
        return (sys.executable, LAUNCHPAD, "client", self._socket, *command)

    def stop(self) -> None:
        for server in self._alive.values():
            server.stop()
        if self._launchpad is not None:
            self._launchpad.terminate()
            self._launchpad.wait()


def http_process(server: ServerProcess) -> psutil.Process:
    """The process that listens, which may be a fork of the launchpad."""
    (pid,) = {
        each.pid for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == server.port
    }  # fmt: skip
    return psutil.Process(pid)


def scheduler_processes(server: ServerProcess) -> list[psutil.Process]:
    """What the HTTP process started: SGLang's ranks first, in order, then the detokenizer.

    Forks of a fork keep its title, so ask no names.
    """
    children = http_process(server).children(recursive=True)
    started = sorted(children, key=lambda each: (each.create_time(), each.pid))
    return [each for each in started if "resource_tracker" not in " ".join(each.cmdline())]


def speculation(steps: int, topk: int, nodes: int) -> list[str]:
    """Flags of `respec serve` for one shape of speculation with the bundled drafter."""
    _, drafter = demo_models()
    return [
        *("--speculative-algorithm", "EAGLE3"),
        *("--speculative-draft-model-path", str(drafter)),
        *("--speculative-num-steps", str(steps)),
        *("--speculative-eagle-topk", str(topk)),
        *("--speculative-num-draft-tokens", str(nodes)),
    ]
