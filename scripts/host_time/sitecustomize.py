"""Times decode steps inside a server's scheduler; Python imports it by its name.

Whoever sets RESPEC_HOST_TIME to a file gets a line per block of decode steps that follow each
other with the same batch: `{"batch": B, "step_us": mean, "forward_us": mean}`. A step is the time
from one `run_batch` to the next; of it, `forward` is the model's forward pass. The rest is the
host's own. Stock SGLang and extended servers are timed by the same few lines.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

BLOCK = 20  # steps; long enough to hold what happens only every few of them
SCHEDULER = "sglang.srt.managers.scheduler"


class Steps:
    """The block of steps that is being filled."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._batch = self._started = self._steps = self._total = self._forward = 0
        self.forward_ns = 0  # of the step that runs

    def begin(self, batch: int) -> None:
        """A decode step of so many requests begins; 0: something else does."""
        now = time.perf_counter_ns()
        if batch and batch == self._batch:
            self._steps += 1
            self._total += now - self._started
            self._forward += self.forward_ns
            if self._steps == BLOCK:
                self._write()
        if batch != self._batch or self._steps == BLOCK:
            self._steps = self._total = self._forward = 0
        self._batch, self._started, self.forward_ns = batch, now, 0

    def _write(self) -> None:
        means = {"step_us": self._total / BLOCK / 1e3, "forward_us": self._forward / BLOCK / 1e3}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"batch": self._batch, **means}) + "\n")


def watch(path: str) -> None:
    """Wrap SGLang's scheduler, which has just been imported."""
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.model_executor.model_runner import ModelRunner

    steps = Steps(path)
    run_batch, forward = Scheduler.run_batch, ModelRunner.forward

    def timed_run_batch(scheduler: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        steps.begin(len(batch.reqs) if batch.forward_mode.is_decode() else 0)
        return run_batch(scheduler, batch, *args, **kwargs)

    def timed_forward(runner: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter_ns()
        try:
            return forward(runner, *args, **kwargs)
        finally:
            steps.forward_ns += time.perf_counter_ns() - started

    Scheduler.run_batch, ModelRunner.forward = timed_run_batch, timed_forward


class Finder(importlib.abc.MetaPathFinder):
    """Watches for the import of the scheduler, once."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != SCHEDULER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_watch(module: Any) -> None:
            execute(module)
            watch(os.environ["RESPEC_HOST_TIME"])

        spec.loader.exec_module = execute_and_watch  # type: ignore[method-assign]
        return spec


if os.environ.get("RESPEC_HOST_TIME"):
    sys.meta_path.insert(0, Finder())
