"""What a policy is told of each decode step, before it and after it."""

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang_respec.core import PLAIN, BatchStats, Plan, Policy, StepRecord


@dataclass
class _Launched:
    """A step whose results have not reached the host."""

    stats: BatchStats
    plan: Plan
    started: float
    follows_step: bool  # nothing but this worker's steps ran since the step before it
    catch_up_tokens: int = 0
    catch_up_seconds: float = 0.0


class Planning:
    """Asks the policy for a plan per step, and tells it what came of it.

    Results reach the host in the order of their steps, one step late if scheduling overlaps.
    """

    def __init__(self, policy: Policy, step_log: str = "") -> None:
        self._policy = policy
        self._launched: deque[_Launched] = deque()
        self._last_finish = 0.0
        self._interrupted = True
        self._catch_up_seconds = 0.0
        self.plain_now = policy.configs[0] == PLAIN
        self._log = Path(step_log).open("a", encoding="utf-8") if step_log else None

    @property
    def speculates(self) -> bool:
        return any(config != PLAIN for config in self._policy.configs)

    @property
    def switches_plain(self) -> bool:
        """Some steps are plain and some are not, so that the drafter falls behind."""
        return self.speculates and PLAIN in self._policy.configs

    def interrupted(self) -> None:
        """A prefill runs: the next step's time is not counted from the last one's end."""
        self._interrupted = True

    def plan(self, batch: Any, gap_tokens: int) -> Plan:
        stats = BatchStats(
            batch_size=len(batch.reqs),
            mean_context_tokens=_mean_context(batch),
            sampled=not batch.sampling_info.is_all_greedy,
            gap_tokens=gap_tokens,
        )
        plan = self._policy.decide(stats)
        self._launched.append(
            _Launched(stats, plan, time.perf_counter(), follows_step=not self._interrupted)
        )
        self._interrupted = False
        self.plain_now = plan.config == PLAIN
        return plan

    @contextmanager
    def catching_up(self) -> Iterator[None]:
        step = self._launched[-1]
        started = time.perf_counter()
        yield
        step.catch_up_tokens = step.stats.gap_tokens
        step.catch_up_seconds = time.perf_counter() - started

    def finished(self, num_correct_drafts: list[int]) -> None:
        """The results of the oldest step that is still out have reached the host."""
        step = self._launched.popleft()
        now = time.perf_counter()
        began = self._last_finish if step.follows_step else step.started
        self._last_finish = now
        record = StepRecord(
            stats=step.stats,
            config=step.plan.config,
            committed_tokens=sum(num_correct_drafts) + len(num_correct_drafts),
            seconds=now - began,
            depths=(),
            catch_up_tokens=step.catch_up_tokens,
            catch_up_seconds=step.catch_up_seconds,
        )
        self._policy.record(record)
        if self._log is not None:
            self._log.write(json.dumps(asdict(record)) + "\n")
            self._log.flush()


def _mean_context(batch: Any) -> float:
    if batch.seq_lens_sum is not None:
        return float(batch.seq_lens_sum) / len(batch.reqs)
    return float(sum(request.seqlen for request in batch.reqs)) / len(batch.reqs)
