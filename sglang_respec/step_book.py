"""What a server has run, in numbers: counts per configuration, switches, acceptance per depth.

Pure counters. A step costs a few additions, whatever its batch; nothing is kept per request but
two numbers from its prefill to its end. Read between two steps, by whoever asks.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sglang_respec.core import BatchStats, Plan, RankCounts, SpeculationConfig, StepRecord

LAST_SWITCHES = 32
LAST_DECISIONS = 1024  # whose times are kept
QUANTILES = (0.5, 0.9, 0.99)


@dataclass
class ConfigCounts:
    """Sums over all steps of one configuration."""

    steps: int = 0
    requests: int = 0  # batch sizes of these steps
    tokens: int = 0  # committed, before stops cut any
    probe_steps: int = 0
    busy_s: float = 0.0  # of steps that followed another one, catch-ups included
    measured_steps: int = 0  # of these, those without a catch-up
    measured_s: float = 0.0
    predicted_steps: int = 0  # measured ones whose time the policy had predicted
    predicted_s: float = 0.0
    predicted_measured_s: float = 0.0  # what the predicted ones took
    prediction_off_s: float = 0.0  # sum of |predicted - measured|


@dataclass(frozen=True)
class Switch:
    """The configuration changed between two steps."""

    step: int  # decode steps launched before it
    at: float  # seconds since the epoch
    before: str
    after: str
    reason: str  # of PLAN_REASONS
    batch_size: int
    mean_context_tokens: float
    gap_tokens: int


@dataclass
class DepthCounts:
    """Of the nodes that the target reached at one depth: whether its token was a candidate."""

    offered: int = 0
    accepted: int = 0
    first_accepted: int = 0  # it was the drafter's first


class StepBook:
    """Told of each step twice: when it is launched, and when its results are on the host.

    Results come in the order of launches; with overlap scheduling, one step late.
    """

    def __init__(
        self,
        configs: Sequence[SpeculationConfig],  # that may run
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self.started_at = clock()
        self.configs = {str(config): ConfigCounts() for config in configs}
        depths = max((config.num_steps for config in configs), default=0)
        self.depths = [DepthCounts() for _ in range(depths)]
        self.reasons: dict[str, int] = {}  # steps by reason
        self.switches: dict[tuple[str, str], int] = {}  # by (configuration after, reason)
        self.last_switches: deque[Switch] = deque(maxlen=LAST_SWITCHES)
        self.catch_ups = 0  # steps before which the drafter caught up
        self.catch_up_tokens = 0
        self.catch_up_s = 0.0  # of the host
        self.guesses = 0  # tokens that the drafter guessed at in plain steps, to be judged
        self.prefills = 0
        self.drafter_swaps = 0
        self.launched_steps = 0
        self.plain_launched = 0
        self.plain_finished = 0  # of the steps whose results are on the host
        self.last_batch_size = 0  # of the step finished last
        self.current: Plan | None = None
        self._decisions = 0
        self._decision_ns = array("q", bytes(8 * LAST_DECISIONS))
        self._decision_sum_ns = 0

    def decided(self, nanoseconds: int) -> None:
        self._decision_ns[self._decisions % LAST_DECISIONS] = nanoseconds
        self._decisions += 1
        self._decision_sum_ns += nanoseconds

    def launched(self, plan: Plan, stats: BatchStats) -> int:
        """A step is planned. Returns how many plain ones there have been, with this one."""
        before, self.current = self.current, plan
        if before is not None and before.config != plan.config:
            self._switch(before, plan, stats)
        self.launched_steps += 1
        self.plain_launched += plan.config.is_plain
        return self.plain_launched

    def _switch(self, before: Plan, plan: Plan, stats: BatchStats) -> None:
        after = str(plan.config)
        key = after, plan.reason
        self.switches[key] = self.switches.get(key, 0) + 1
        self.last_switches.append(
            Switch(
                step=self.launched_steps,
                at=self._clock(),
                before=str(before.config),
                after=after,
                reason=plan.reason,
                batch_size=stats.batch_size,
                mean_context_tokens=stats.mean_context_tokens,
                gap_tokens=stats.gap_tokens,
            )
        )

    def finished(
        self,
        plan: Plan,
        record: StepRecord,
        plain_through: int,  # what `launched` returned for it
        seconds: float | None,  # since the step before; None where that says nothing of this one
        catch_up_tokens: int = 0,
        catch_up_s: float = 0.0,
        guesses: int = 0,  # in a plain step
    ) -> None:
        """The results of the oldest step that is out are on the host."""
        counts = self.configs.setdefault(str(record.config), ConfigCounts())
        counts.steps += 1
        counts.requests += record.batch_size
        counts.tokens += record.tokens_committed
        counts.probe_steps += plan.reason == "probe"
        self.reasons[plan.reason] = self.reasons.get(plan.reason, 0) + 1
        self.plain_finished = plain_through
        self.last_batch_size = record.batch_size
        self.guesses += guesses
        if catch_up_tokens:
            self.catch_ups += 1
            self.catch_up_tokens += catch_up_tokens
            self.catch_up_s += catch_up_s
        if seconds is not None:
            counts.busy_s += seconds
            if not catch_up_tokens:
                _measured(counts, seconds, plan.predicted_s)
        if not record.config.is_plain:  # of a plain step they are guesses at one token
            for ranks in record.ranks:
                self._count_depth(ranks)

    def _count_depth(self, ranks: RankCounts) -> None:
        while len(self.depths) < ranks.depth:
            self.depths.append(DepthCounts())
        depth, hits = self.depths[ranks.depth - 1], sum(ranks.hits)
        depth.offered += hits + ranks.misses
        depth.accepted += hits
        depth.first_accepted += ranks.hits[0] if ranks.hits else 0

    @property
    def steps(self) -> int:
        """Whose results are on the host."""
        return sum(each.steps for each in self.configs.values())

    @property
    def switch_count(self) -> int:
        return sum(self.switches.values())

    def time_shares(self) -> dict[str, float]:
        """Part of the decode time per configuration; sums to 1, or all 0 before any is known."""
        total = sum(each.busy_s for each in self.configs.values())
        return {name: each.busy_s / total if total else 0.0 for name, each in self.configs.items()}

    def decision_quantiles_us(self) -> dict[str, float]:
        """Microseconds of the last decisions; empty before the first."""
        times = sorted(self._decision_ns[: min(self._decisions, LAST_DECISIONS)])
        if not times:
            return {}
        found = {
            f"p{round(100 * q)}": times[min(len(times) - 1, int(q * len(times)))] / 1e3
            for q in QUANTILES
        }
        mean = self._decision_sum_ns / self._decisions
        return found | {"max": times[-1] / 1e3, "mean": mean / 1e3}

    def facts(self) -> dict[str, Any]:
        """Everything, as plain JSON values: for `GET /respec/state`."""
        shares, steps = self.time_shares(), self.steps
        return {
            "uptime_s": self._clock() - self.started_at,
            "steps": steps,
            "configs": [
                {"config": name, "time_share": shares[name], **_config_facts(counts)}
                for name, counts in self.configs.items()
            ],
            "steps_by_reason": dict(self.reasons),
            "switches": self.switch_count,
            "switches_per_1000_steps": 1000 * self.switch_count / steps if steps else 0.0,
            "switches_by_reason": [
                {"config": config, "reason": reason, "switches": count}
                for (config, reason), count in self.switches.items()
            ],
            "prefills": self.prefills,
            "catch_ups": self.catch_ups,
            "catch_up_tokens": self.catch_up_tokens,
            "catch_up_s": self.catch_up_s,
            "guesses": self.guesses,
            "drafter_swaps": self.drafter_swaps,
            "depths": self.depth_facts(),
            "decision_us": self.decision_quantiles_us(),
        }

    def depth_facts(self) -> list[dict[str, Any]]:
        """Measured acceptance per depth, of the nodes that the target reached."""
        return [
            {
                "depth": depth,
                **asdict(counts),
                "acceptance": counts.accepted / counts.offered if counts.offered else None,
            }
            for depth, counts in enumerate(self.depths, start=1)
        ]

    def switch_facts(self) -> list[dict[str, Any]]:
        """The last switches, the newest first."""
        return [asdict(each) for each in reversed(self.last_switches)]


class RequestSteps:
    """How many of a request's steps were plain.

    Every decode step runs every request that has been prefilled and is not yet at its end, so that
    two readings of the book's own count are enough: nothing is done per request and step.
    """

    __slots__ = ("_book", "_joined", "_plain")

    def __init__(self, book: StepBook) -> None:
        self._book = book
        self._joined: int | None = None
        self._plain = 0

    def join(self) -> None:
        """Its prefill, or a later chunk of it, is launched."""
        self._joined = self._book.plain_launched

    def leave(self) -> None:
        """It is retracted; steps whose results are not on the host yet will not count for it."""
        self._plain = self.plain
        self._joined = None

    @property
    def plain(self) -> int:
        """Plain steps of it whose results are on the host."""
        if self._joined is None:
            return self._plain
        return self._plain + max(0, self._book.plain_finished - self._joined)


def _measured(counts: ConfigCounts, seconds: float, predicted_s: float | None) -> None:
    counts.measured_steps += 1
    counts.measured_s += seconds
    if predicted_s is not None:
        counts.predicted_steps += 1
        counts.predicted_s += predicted_s
        counts.predicted_measured_s += seconds
        counts.prediction_off_s += abs(predicted_s - seconds)


def _config_facts(counts: ConfigCounts) -> dict[str, Any]:
    step_s = counts.measured_s / counts.measured_steps if counts.measured_steps else None
    known, off_s = counts.predicted_steps, counts.prediction_off_s
    return {
        **asdict(counts),
        "mean_batch_size": counts.requests / counts.steps if counts.steps else None,
        "accepted_length": counts.tokens / counts.requests if counts.requests else None,
        "step_s": step_s,
        "predicted_step_s": counts.predicted_s / known if known else None,
        "prediction_error": off_s / counts.predicted_measured_s if known else None,
        "tokens_per_s": counts.tokens / counts.steps / step_s if step_s else None,
    }
