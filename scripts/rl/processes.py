"""The processes of one arm: a server, and where the arm has one, a learner beside it."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

from respec_server.bundled import demo_flags, demo_models
from respec_server.cpu_environ import CPU_ENVIRON
from respec_server.process import RESPEC_SERVE, ServerFailed, ServerProcess
from rl.records import Arm, Settings

RESPEC_LEARN = (sys.executable, "-m", "respec_server", "learn")
SINGLE_THREADED = {**CPU_ENVIRON, "OMP_NUM_THREADS": "1"}
LEARNER_READY_S = 180.0
POLL_S = 0.5
REQUEST_S = 120.0


class Rig:
    """Server and learner of one arm, from entering to leaving.

    ``folder`` gets their logs, the policy's checkpoint and the learner's output, and is emptied.
    ``serve`` starts the server.
    """

    def __init__(
        self, arm: Arm, settings: Settings, folder: Path, serve: Sequence[str] = RESPEC_SERVE
    ) -> None:
        self._arm, self._folder = arm, folder
        shutil.rmtree(folder, ignore_errors=True)
        self.checkpoint = _copy_target(folder / "policy")
        learner = ServerProcess([], command=RESPEC_LEARN) if arm.weight else None
        self._server = ServerProcess(
            _server_flags(arm, settings, learner.url if learner else None),
            command=serve, environ=SINGLE_THREADED, log=folder / "server.log",
        )  # fmt: skip
        self._learner: ServerProcess | None = None
        if learner is not None:
            self._learner = ServerProcess(
                _learner_flags(arm, settings, self._server.url, folder / "learner"),
                command=RESPEC_LEARN, port=learner.port, environ=SINGLE_THREADED,
                log=folder / "learner.log",
            )  # fmt: skip

    @property
    def url(self) -> str:
        return self._server.url

    def __enter__(self) -> Rig:
        try:
            self._server.start()
            if self._learner is not None:
                self._learner.start()
            self._server.wait_until_ready()
            self._wait_for_learner()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def push_policy(self, version: str) -> None:
        """The checkpoint in ``self.checkpoint`` to the server, by SGLang's own endpoint. It
        flushes the prefix cache, which holds keys and values of the old policy."""
        body = {"model_path": str(self.checkpoint), "weight_version": version}
        answer = httpx.post(
            f"{self.url}/update_weights_from_disk", json=body, timeout=REQUEST_S, trust_env=False
        )
        if not answer.is_success or not answer.json().get("success"):
            raise ServerFailed(
                f"The policy push {version} failed ({answer.text[:300]}); the log is "
                f"{self._server.log}."
            )

    def drafter_version(self) -> int | None:
        if not self._arm.speculates:
            return None
        return int(self._get(f"{self.url}/drafter")["serving"])

    def post_rewards(self, rewards: Sequence[dict[str, Any]]) -> None:
        """To the learner, if there is one."""
        if self._learner is not None:
            url = f"{self._learner.url}/rewards"
            with self._learner_at_work() as options:
                httpx.post(url, json={"rewards": list(rewards)}, **options).raise_for_status()

    def learner_status(self) -> dict[str, Any] | None:
        if self._learner is None:
            return None
        with self._learner_at_work():
            return self._get(f"{self._learner.url}/status")

    def learner_cpu_s(self) -> float:
        """Processor seconds that the learner used so far; 0 without one."""
        if self._learner is None:
            return 0.0
        with self._learner_at_work():
            times = psutil.Process(self._learner.pid).cpu_times()
        return float(times.user + times.system)

    @contextlib.contextmanager
    def _learner_at_work(self) -> Iterator[dict[str, Any]]:
        """Serving would not mind a learner that ended; a comparison with it does."""
        assert self._learner is not None
        try:
            yield {"timeout": REQUEST_S, "trust_env": False}
        except (httpx.HTTPError, psutil.Error) as error:
            raise ServerFailed(
                f"The learner does not answer ({error}); its log is {self._learner.log}.\n"
                f"{self._learner.log_tail()}"
            ) from error

    def _get(self, url: str) -> dict[str, Any]:
        answer = httpx.get(url, timeout=REQUEST_S, trust_env=False)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def _wait_for_learner(self) -> None:
        if self._learner is None:
            return
        deadline = time.monotonic() + LEARNER_READY_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if self._get(f"{self._learner.url}/status").get("state") == "learning":
                    return
            if psutil.Process(self._learner.pid).status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(POLL_S)
        raise ServerFailed(
            f"The learner is not ready; its log is {self._learner.log}.\n{self._learner.log_tail()}"
        )

    def _stop(self) -> None:
        """The learner first: it would wait for a server that is gone."""
        for each in (self._learner, self._server):
            if each is not None:
                each.stop()


def _server_flags(arm: Arm, settings: Settings, learner_url: str | None) -> list[str]:
    flags = [*demo_flags(), "--dtype", "float32", "--respec-portable-threads", "1"]
    flags += ["--max-running-requests", str(settings.concurrency)]
    if arm.speculates:
        # One shape throughout, so that accepted lengths of two steps compare.
        flags += ["--drafter-path", str(demo_models()[1]), "--respec-policy", "always"]
    if learner_url is not None:
        flags += ["--respec-samples-to", learner_url]
    return flags


def _learner_flags(arm: Arm, settings: Settings, server_url: str, output: Path) -> list[str]:
    target, drafter = demo_models()
    flags = ["--model-path", str(target), "--drafter-path", str(drafter)]
    flags += ["--server", server_url, "--output", str(output), "--weight", str(arm.weight)]
    for name, value in settings.learner.items():
        flags += [f"--{name}", value]
    return flags


def _copy_target(folder: Path) -> Path:
    """A checkpoint of the bundled target, whose weights the trainer replaces."""
    shutil.copytree(demo_models()[0], folder)
    return folder
