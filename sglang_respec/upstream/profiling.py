"""Rounds of the real worker on batches that stand still, with a clock around them.

What is timed is `forward_batch_generation` itself, planning and tap included, up to the moment
when the device is idle. Every call starts from the same committed tokens: nothing is committed.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from sglang_respec.core import PLAIN, BatchStats, Plan, SpeculationConfig, StepRecord
from sglang_respec.hidden_tap import Ints
from sglang_respec.upstream.dummy_batch import dummy_batch
from sglang_respec.upstream.rank_talk import RankTalk


class Scripted:
    """A policy that runs what it is told."""

    config: SpeculationConfig = PLAIN

    def decide(self, stats: BatchStats) -> Plan:
        return Plan(self.config, "fixed")

    def record(self, step: StepRecord) -> None:
        """No result is reported."""

    def on_drafter_push(self) -> None:
        """No drafter is pushed at the start."""

    def table(self) -> dict[str, Any]:
        return {"policy": "profile", "current": str(self.config), "reason": "fixed"}


class WorkerBench:
    """The `Bench` of `planner.measured` on a worker that plans by `script`."""

    def __init__(self, worker: Any, script: Scripted, talk: RankTalk) -> None:
        self._worker, self._script, self._talk = worker, script, talk
        self._started = time.perf_counter()

    def elapsed_s(self) -> float:
        return self._talk.number(time.perf_counter() - self._started)

    def shared(self, seconds: float) -> float:
        return self._talk.number(seconds)

    @contextmanager
    def batch(self, batch_size: int, context_tokens: int) -> Iterator["_Timer"]:
        with dummy_batch(self._worker, batch_size, context_tokens) as batch:
            timer = _Timer(self._worker, self._script, batch)
            try:
                yield timer
            finally:
                timer.leave()


class _Timer:
    def __init__(self, worker: Any, script: Scripted, batch: Any) -> None:
        self._worker, self._script, self._batch = worker, script, batch
        self._slots: Ints = batch.req_pool_indices_cpu.numpy().copy()
        self._ends: Ints = batch.seq_lens_cpu.numpy().copy()
        ones = torch.ones_like(batch.req_pool_indices)
        batch.spec_info = worker.draft_worker.cold_input(ones)
        self._kept = {each.name: getattr(batch, each.name) for each in fields(batch)}
        self._sampling = batch.sampling_info

    def round_seconds(self, config: SpeculationConfig) -> float:
        self._script.config = config
        self._set_gap(0)
        return self._timed(lambda: self._worker.forward_batch_generation(self._batch))

    def extend_seconds(self, tokens: int) -> float:
        self._set_gap(tokens)
        rows = np.arange(len(self._slots))
        drafter = self._worker.draft_worker
        with self._worker.drafter_context():
            return self._timed(lambda: drafter.catch_up(self._batch, rows, self._ends))

    def leave(self) -> None:
        self._set_gap(0)

    def _timed(self, work: Any) -> float:
        self._restore()
        device = torch.get_device_module(self._worker.device)
        device.synchronize()
        started = time.perf_counter()
        work()
        device.synchronize()
        return time.perf_counter() - started

    def _restore(self) -> None:
        """As the scheduler does around a forward: the worker changes its batch."""
        for name, value in self._kept.items():
            setattr(self._batch, name, value)
        self._batch.sampling_info = self._sampling.copy_for_forward()
        cold = self._kept["spec_info"]
        self._batch.spec_info = self._worker.draft_worker.cold_input(cold.bonus_tokens)

    def _set_gap(self, tokens: int) -> None:
        tap = self._worker.draft_worker.tap
        if tap is not None:
            tap.gap[self._slots] = tokens
