"""Replay a load against a policy on a simulated machine, and against the oracle.

A policy is told what a server would tell it: batch sizes, contexts, gaps, ranks, measured times.
Time is the machine's mean time, so the noise of a clock misleads policies but does not score.
Prefill is left out: it is the same for all.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sglang_respec.core import (
    PLAIN,
    BatchStats,
    Plan,
    RankCounts,
    SpeculationConfig,
    StepRecord,
)
from sglang_respec.planner.policy import Policy
from sglang_respec.planner.traces import Request, Trace
from sglang_respec.planner.world import Drawn, Machine, draw_round

WINDOW_TOKENS = 512  # a catch-up goes back so far, as the worker's ring does
PARTS = 10  # a run is also judged in tenths of its tokens


@dataclass
class Result:
    """What one run did."""

    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    switches: int = 0
    probe_steps: int = 0
    catch_up_s: float = 0.0
    decide_s: list[float] = field(default_factory=list)
    record_s: list[float] = field(default_factory=list)
    seconds_of: dict[SpeculationConfig, float] = field(default_factory=dict)
    part_seconds: list[float] = field(default_factory=lambda: [0.0] * PARTS)
    oracle_s: float = 0.0  # what the oracle would take for the same tokens, batch by batch
    part_plain_s: list[float] = field(default_factory=lambda: [0.0] * PARTS)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    @property
    def oracle_share(self) -> float:
        """The oracle's time over ours for the same tokens at the same batches: 1 is no regret."""
        return self.oracle_s / self.seconds

    @property
    def worst_part_over_plain(self) -> float:
        """In the worst tenth of the tokens: the time plain decoding would have taken for what
        each step committed, at that step's batch and context, over the time taken."""
        parts = zip(self.part_plain_s, self.part_seconds, strict=True)
        return min(plain / taken for plain, taken in parts if taken > 0.0)


class _Running:
    """A request in the batch: what is left, how long it is, what its drafter lacks."""

    __slots__ = ("context", "gap", "key", "left")

    def __init__(self, request: Request) -> None:
        self.left = request.new_tokens
        self.context = request.prompt_tokens
        self.gap = 0
        self.key = request.offset, request.temperature_class


class Run:
    """One policy on one trace.

    keeps_drafter: plain decoding runs the drafter's extend each step, as SGLang's 0-step does, and
    so never has a gap.
    """

    def __init__(
        self, trace: Trace, machine: Machine, seed: int, keeps_drafter: bool = False
    ) -> None:
        self.trace, self.machine, self.keeps_drafter = trace, machine, keeps_drafter
        self.result = Result()
        self._rng = random.Random(f"run/{seed}")  # noqa: S311
        self._waiting = list(reversed(trace.requests))
        self._batch: list[_Running] = []
        self._pushes = list(trace.pushes)
        self._total = trace.tokens
        self._ran = PLAIN

    def play(self, policy: Policy) -> Result:
        """Serve every request; returns the figures."""
        while self._admit():
            self._push(policy)
            stats = self.stats()
            begin = time.thread_time()
            plan = policy.decide(stats)
            self.result.decide_s.append(time.thread_time() - begin)
            step = self._step(plan, stats)
            begin = time.thread_time()
            policy.record(step)
            self.result.record_s.append(time.thread_time() - begin)
        return self.result

    @property
    def progress(self) -> float:
        return self.result.tokens / self._total

    @property
    def quality(self) -> float:
        return self.trace.quality_at(self.progress)

    def requests(self) -> Counter[tuple[int, int]]:
        """(offset, temperature class) of the running requests: hidden but from the oracle."""
        return Counter(each.key for each in self._batch)

    def first_requests(self) -> Counter[tuple[int, int]]:
        """The same of the requests that the run begins with."""
        first = self.trace.requests[: self.trace.max_running]
        return Counter((each.offset, each.temperature_class) for each in first)

    def best(self, stats: BatchStats) -> tuple[SpeculationConfig, float]:
        """The oracle's choice for this batch and its tokens per second."""
        size, context = stats.batch_size, stats.mean_context_tokens
        return self.machine.best(size, context, self.quality, self.requests())

    def stats(self) -> BatchStats:
        batch = self._batch
        classes = Counter(each.key[1] for each in batch)
        return BatchStats(
            len(batch),
            sum(each.context for each in batch) / len(batch),
            (classes[0], classes[1], classes[2]),
            sum(min(each.gap, WINDOW_TOKENS) for each in batch),
        )

    def _admit(self) -> bool:
        waiting, batch = self._waiting, self._batch
        while waiting and len(batch) < self.trace.max_running:
            if waiting[-1].arrives_at > self.progress and batch:
                break
            batch.append(_Running(waiting.pop()))
        return bool(batch)

    def _push(self, policy: Policy) -> None:
        while self._pushes and self._pushes[0] <= self.progress:
            self._pushes.pop(0)
            policy.on_drafter_push()

    def _step(self, plan: Plan, stats: BatchStats) -> StepRecord:
        _, best_rate = self.best(stats)
        drawn = self._draw(plan, stats)
        seconds = self._round_seconds(plan.config, stats)
        part = min(PARTS - 1, int(PARTS * self.progress))
        taken = self._account(plan, seconds, self._extra_seconds(plan, stats))
        committed = self._commit(drawn.accepted, plan.config)
        self.result.part_seconds[part] += taken
        self.result.oracle_s += committed / best_rate
        self.result.part_plain_s[part] += committed * self._plain_seconds_per_token(stats)
        return StepRecord(
            plan.config,
            stats.batch_size,
            stats.mean_context_tokens,
            stats.requests_per_class,
            sum(drawn.accepted),
            self.machine.measured(seconds, self._rng),
            drawn.ranks,
        )

    def _draw(self, plan: Plan, stats: BatchStats) -> Drawn:
        keys = [each.key for each in self._batch]
        if not plan.config.is_plain:
            return draw_round(plan.config, self.quality, keys, self._rng)
        probed = [each.key for each in self._probed(plan)]
        ranks = self._guesses(probed, max(each.topk for each in self.machine.configs))
        return Drawn([1] * len(keys), ranks)

    def _probed(self, plan: Plan) -> list[_Running]:
        """The requests whose next token the drafter guesses: those it is least behind."""
        nearest = sorted(self._batch, key=lambda each: each.gap)
        return nearest[: plan.probe_tokens]

    def _guesses(self, keys: list[tuple[int, int]], candidates: int) -> tuple[RankCounts, ...]:
        """Depth-1 ranks of one token of each request."""
        if not keys:
            return ()
        once = SpeculationConfig(1, candidates, 1 + candidates)
        return draw_round(once, self.quality, keys, self._rng).ranks

    def _round_seconds(self, config: SpeculationConfig, stats: BatchStats) -> float:
        size, context = stats.batch_size, stats.mean_context_tokens
        seconds = self.machine.seconds(config, size, context)
        if config.is_plain and self.keeps_drafter:
            seconds += self.machine.profile.extend_seconds(size, size, context)
        return seconds

    def _extra_seconds(self, plan: Plan, stats: BatchStats) -> float:
        extend = self.machine.profile.extend_seconds
        size, context = stats.batch_size, stats.mean_context_tokens
        if plan.config.is_plain:
            probed = self._probed(plan)
            behind = sum(min(each.gap, WINDOW_TOKENS) for each in probed)
            for each in probed:
                each.gap = 0
            return extend(behind, len(probed), context)
        seconds = extend(stats.gap_tokens, size, context)
        if plan.config != self._ran and not self._ran.is_plain:
            seconds += self.machine.profile.switch_s
        self.result.catch_up_s += seconds
        return seconds

    def _plain_seconds_per_token(self, stats: BatchStats) -> float:
        size, context = stats.batch_size, stats.mean_context_tokens
        return self.machine.seconds(PLAIN, size, context) / size

    def _account(self, plan: Plan, seconds: float, extra_s: float) -> float:
        result = self.result
        result.steps += 1
        result.switches += plan.config != self._ran and result.steps > 1
        result.probe_steps += plan.reason == "probe"
        result.seconds += seconds + extra_s
        before = result.seconds_of.get(plan.config, 0.0)
        result.seconds_of[plan.config] = before + seconds + extra_s
        self._ran = plan.config
        return seconds + extra_s

    def _commit(self, accepted: Sequence[int], config: SpeculationConfig) -> int:
        before = self.result.tokens
        grows = config.is_plain and not self.keeps_drafter
        for each, count in zip(self._batch, accepted, strict=True):
            count = min(count, each.left)
            each.left -= count
            each.context += count
            each.gap = each.gap + count if grows else 0
            self.result.tokens += count
        self._batch = [each for each in self._batch if each.left]
        return self.result.tokens - before


class Oracle:
    """Knows the hidden truth of the batch at hand, and pays nothing for a change of mind.

    A bound rather than a policy: it takes the best rate of every step, with no catch-up charged,
    so nobody can be expected to reach it.
    """

    def __init__(self, run: Run) -> None:
        self._run, self._current = run, PLAIN

    def decide(self, stats: BatchStats) -> Plan:
        self._current, _ = self._run.best(stats)
        return Plan(self._current, "rule")

    def record(self, step: StepRecord) -> None:
        pass

    def on_drafter_push(self) -> None:
        pass

    def table(self) -> dict[str, str]:
        return {"policy": "oracle", "current": str(self._current), "reason": "rule"}


def play_oracle(trace: Trace, machine: Machine, seed: int) -> Result:
    """The bound: the best configuration of every step, changes free of charge."""
    run = Run(trace, machine, seed)
    result = run.play(Oracle(run))
    result.seconds -= result.catch_up_s
    return result
