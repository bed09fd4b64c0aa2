"""The servers a benchmark compares, and a pool that keeps them running beside each other."""

from __future__ import annotations

import shlex
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil  # type: ignore[import-untyped]
from bench_report import public_text

from respec_server.cpu_environ import CPU_ENVIRON
from respec_server.device import cuda_devices
from respec_server.process import RESPEC_SERVE, ServerProcess
from sglang_respec.config import SWITCH_ENV

STOCK_SERVE = (str(Path(sys.executable).with_name("sglang")), "serve")
# Of the bundled models on a CPU; most of it is libraries.
SERVER_GIB = 2.5


@dataclass(frozen=True)
class ServerSpec:
    """One server to measure. stock: SGLang with the extension switched off."""

    name: str
    stock: bool
    flags: tuple[str, ...]

    @property
    def environ(self) -> dict[str, str]:
        """Laid over this process's environment; stock and extended servers get the same care."""
        care = CPU_ENVIRON if cuda_devices()[0] == 0 else {}
        return {**care, SWITCH_ENV: "0" if self.stock else "1"}

    @property
    def arguments(self) -> tuple[str, ...]:
        """The flags; a server that names no policy keeps the shape it is measured in."""
        if self.stock or "--respec-policy" in self.flags:
            return self.flags
        return (*self.flags, "--respec-policy", "always")

    def facts(self) -> dict[str, Any]:
        command = "sglang serve" if self.stock else "respec serve"
        text = public_text(f"{command} {shlex.join(self.arguments)}")
        return {"name": self.name, "command": text, "environ": self.environ}


def speculation(drafter: str, steps: int, topk: int, nodes: int) -> tuple[str, ...]:
    """SGLang's flags for one shape of EAGLE-3 speculation."""
    return (
        *("--speculative-algorithm", "EAGLE3"),
        *("--speculative-draft-model-path", drafter),
        *("--speculative-num-steps", str(steps)),
        *("--speculative-eagle-topk", str(topk)),
        *("--speculative-num-draft-tokens", str(nodes)),
    )


def default_alive() -> int:
    """How many servers fit beside each other: one on a GPU, which each would fill."""
    if cuda_devices()[0]:
        return 1
    free_gib = psutil.virtual_memory().available / 2**30
    return max(1, int(free_gib // SERVER_GIB))


class Pool:
    """Starts servers when they are asked for, and stops all of them at the end.

    alive: at most so many run; then the one asked for least recently is stopped.
    """

    def __init__(self, alive: int, logs: Path) -> None:
        self._alive = alive
        self._logs = logs
        self._servers: OrderedDict[ServerSpec, ServerProcess] = OrderedDict()

    def url(self, spec: ServerSpec) -> str:
        if spec not in self._servers:
            self.start([spec])
        self._servers.move_to_end(spec)
        return self._servers[spec].url

    def start(self, specs: Sequence[ServerSpec]) -> None:
        """Start servers that do not run yet side by side, none of them before the others."""
        while self._servers and len(self._servers) + len(specs) > self._alive:
            _, oldest = self._servers.popitem(last=False)
            oldest.stop()
        try:
            for spec in specs:
                self._servers[spec] = self._launched(spec)
            for spec in specs:
                self._servers[spec].wait_until_ready()
        except BaseException:
            for spec in specs:
                if spec in self._servers:
                    self._servers.pop(spec).stop()
            raise

    def pid(self, spec: ServerSpec) -> int:
        """Of a server that was asked for before; its other processes are children of this one."""
        return self._servers[spec].pid

    def _launched(self, spec: ServerSpec) -> ServerProcess:
        name = "".join(each if each.isalnum() else "-" for each in spec.name)
        return ServerProcess(
            spec.arguments,
            command=STOCK_SERVE if spec.stock else RESPEC_SERVE,
            environ=spec.environ,
            log=self._logs / f"{name}.log",
            ready_timeout_s=1800.0,  # loading and graph capture of a large model
        ).start()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers.values():
            server.stop()
