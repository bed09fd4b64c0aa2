"""What a policy is told of each decode step, before it and after it."""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglang_respec.core import (
    TEMPERATURE_CLASSES,
    BatchStats,
    Plan,
    RankCounts,
    SpeculationConfig,
    StepRecord,
    temperature_class,
)
from sglang_respec.draft_ranks import chain_ranks, tree_ranks
from sglang_respec.hidden_tap import Ints
from sglang_respec.planner import Policy
from sglang_respec.step_book import StepBook
from sglang_respec.upstream.step_counts import mark_joined

SHARED_EVERY = 8  # steps between two times that rank 0 tells the others: a message each


@dataclass
class _Launched:
    """A step whose results have not reached the host."""

    stats: BatchStats
    plan: Plan
    classes: Ints  # [B] temperature class of each request
    follows_step: bool  # nothing but decode steps ran since the step before it
    plain_through: int  # plain steps up to this one
    # See `count_tree_ranks`; of a tree, or of a probe; on its way to the host.
    tree_counts: torch.Tensor | None = None
    catch_up_tokens: int = 0
    catch_up_seconds: float = 0.0  # of the host
    probed_requests: int = 0  # of a plain step: the drafter guessed at so many tokens


class Planning:
    """Asks the policy for a plan per step, and tells it what came of it.

    Results reach the host in the order of their steps, one step late if scheduling overlaps.
    """

    def __init__(
        self,
        policy: Policy,
        request_slots: int,
        step_log: str = "",
        first_ranks: Callable[[float], float] | None = None,
        configs: Sequence[SpeculationConfig] = (),
    ) -> None:
        """first_ranks: gives rank 0's value to all, where there are several; None where not.

        configs: what the policy may run, for the book.
        """
        self.policy = policy
        self.book = StepBook(configs)
        self.on_step: Callable[[], None] | None = None  # told when a step's results are in the book
        self._first_ranks = first_ranks
        self._steps = 0
        self._classes: Ints = np.zeros(request_slots, dtype=np.int64)
        self._slots: torch.Tensor | None = None  # of the last batch, and what `_classes_in` found
        self._of_slots: Ints = self._classes[:0]
        self._per_class = (0, 0, 0)
        self._launched: deque[_Launched] = deque()
        self._last_finish = 0.0
        self._follows_step = False
        self._log = (
            Path(step_log).open("a", encoding="utf-8")  # noqa: SIM115  (as long as the process)
            if step_log
            else None
        )

    def prefilling(self, batch: Any) -> None:
        """New requests; the next step's time cannot be told from the end of the last one."""
        self._follows_step = False
        slots = batch.req_pool_indices_cpu.numpy()
        self._classes[slots] = [_class_of(request.sampling_params) for request in batch.reqs]
        self._slots = None
        self.book.prefills += 1
        mark_joined(batch.reqs, self.book)

    def plan(self, batch: Any, gap_tokens: int) -> Plan:
        classes, per_class = self._classes_in(batch.req_pool_indices_cpu)
        stats = BatchStats(
            batch_size=len(batch.reqs),
            mean_context_tokens=_mean_context(batch),
            requests_per_class=per_class,
            gap_tokens=gap_tokens,
        )
        started = time.perf_counter_ns()
        plan = self.policy.decide(stats)
        self.book.decided(time.perf_counter_ns() - started)
        plain_through = self.book.launched(plan, stats)
        self._launched.append(_Launched(stats, plan, classes, self._follows_step, plain_through))
        self._follows_step = True
        return plan

    def _classes_in(self, slots: torch.Tensor) -> tuple[Ints, tuple[int, int, int]]:
        """[B] temperature classes, and requests per class. SGLang makes a new tensor of slots when
        the batch changes, so that most steps find the last answer."""
        if slots is not self._slots:
            self._slots, self._of_slots = slots, self._classes[slots.numpy()]
            counts = np.bincount(self._of_slots, minlength=len(TEMPERATURE_CLASSES))
            greedy, low, high = counts.tolist()
            self._per_class = greedy, low, high
        return self._of_slots, self._per_class

    @property
    def classes(self) -> Ints:
        """[B] i64, temperature classes of the batch planned last."""
        return self._launched[-1].classes

    def counted(self, tree_counts: torch.Tensor) -> None:
        """Rank counts of the step planned last; must be on the host when its results are."""
        self._launched[-1].tree_counts = tree_counts

    def probed(self, requests: int) -> None:
        """The drafter guesses at the tokens that so many requests sample in this step."""
        self._launched[-1].probed_requests = requests

    @contextmanager
    def catching_up(self, tokens: int) -> Iterator[None]:
        step, started = self._launched[-1], time.perf_counter()
        yield
        step.catch_up_tokens += tokens
        step.catch_up_seconds += time.perf_counter() - started

    def drafter_swapped(self) -> None:
        """What the drafter was worth is no longer known."""
        self.policy.on_drafter_push()
        self.book.drafter_swaps += 1

    def finished(self, correct_drafts: list[int]) -> StepRecord:
        """The results of the oldest step that is still out have reached the host."""
        step, now = self._launched.popleft(), time.perf_counter()
        seconds = now - self._last_finish
        self._steps += 1
        record = StepRecord(
            config=step.plan.config,
            batch_size=step.stats.batch_size,
            mean_context_tokens=step.stats.mean_context_tokens,
            requests_per_class=step.stats.requests_per_class,
            tokens_committed=sum(correct_drafts) + len(correct_drafts),
            seconds=self._shared(seconds) if self._measured(step) else None,
            ranks=_ranks(step, correct_drafts),
        )
        self._last_finish = now
        self.policy.record(record)
        self.book.finished(
            step.plan,
            record,
            step.plain_through,
            seconds if step.follows_step else None,
            step.catch_up_tokens,
            step.catch_up_seconds,
            step.probed_requests,
        )
        if self.on_step is not None:
            self.on_step()
        if self._log is not None:
            self._write(step, record)
        return record

    def _measured(self, step: _Launched) -> bool:
        """The same on every rank."""
        undisturbed = step.follows_step and not step.catch_up_tokens
        return undisturbed and (self._first_ranks is None or self._steps % SHARED_EVERY == 0)

    def _shared(self, seconds: float) -> float:
        """A policy that learns from times must learn from equal ones, or ranks part ways."""
        return seconds if self._first_ranks is None else self._first_ranks(seconds)

    def _write(self, step: _Launched, record: StepRecord) -> None:
        assert self._log is not None
        line = asdict(replace(record, ranks=())) | {
            "config": str(record.config),
            "reason": step.plan.reason,
            "gap_tokens": step.stats.gap_tokens,
            "catch_up_tokens": step.catch_up_tokens,
            "catch_up_seconds": step.catch_up_seconds,
            "probed_requests": step.probed_requests,
            "process": os.getpid(),  # each rank writes its own lines
        }
        del line["ranks"]
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()


def _class_of(params: Any) -> int:
    """SGLang has turned a temperature of 0 into top-k 1 at temperature 1."""
    return temperature_class(0.0 if params.top_k == 1 else params.temperature)


def _mean_context(batch: Any) -> float:
    if batch.seq_lens_sum is not None:
        return float(batch.seq_lens_sum) / len(batch.reqs)
    return float(np.mean([request.seqlen for request in batch.reqs]))


def _ranks(step: _Launched, correct_drafts: list[int]) -> tuple[RankCounts, ...]:
    config = step.plan.config
    if step.tree_counts is not None:
        return tree_ranks(step.tree_counts)
    if config.is_plain:
        return ()
    return chain_ranks(correct_drafts, step.classes.tolist(), config.num_steps)
