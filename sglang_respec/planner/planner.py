"""The policy `auto`: run what commits most tokens per second, and know how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_respec.core import (
    PLAIN,
    PLAN_REASONS,
    BatchStats,
    Plan,
    SpeculationConfig,
    StepRecord,
)
from sglang_respec.errors import RespecError
from sglang_respec.planner.acceptance import (
    MEMORY_OBSERVATIONS,
    MEMORY_STEPS,
    PRIOR_WEIGHT,
    PROBE_OBSERVATIONS,
    Acceptance,
    Estimate,
)
from sglang_respec.planner.cost import CostModel, Place
from sglang_respec.planner.profile import Profile

PROBE_STRIDE = 4  # whether to probe is asked at every so manieth decision
FIRST_ROUNDS = 4  # the first rounds are plain: what must not be undercut is measured first
LEAST_PROBE_ROUNDS = 4  # one round of many requests is one time, and none right after a catch-up
PROBE_STRETCH = 2  # a probe of a batch that shrinks takes at most so many times its rounds
MAX_CONFIGS = 8  # besides PLAIN: what CUDA graphs allow and a decision can look at


@dataclass(frozen=True)
class PlannerSettings:
    """What may be set; nothing here depends on the rank, the clock or the machine."""

    first_dwell_steps: float = 200.0  # how long a choice is believed to last before any is known


@dataclass(slots=True)
class _Option:
    """One configuration as it stands for the batch at hand. Rates are per request."""

    index: int
    rate: float  # tokens per second
    relative_time: float  # seconds of a round, but for the factor all share
    estimate: Estimate


class Planner:
    """Decides from rank-identical inputs only: no clock, no random numbers, no device.

    A change must earn more, over the time the choice is expected to last, than the catch-up it
    costs and than one standard error of the difference. A probe is made when what it may teach,
    times the steps for which that stays true, is worth more than what it costs.
    """

    def __init__(
        self,
        profile: Profile,
        configs: Sequence[SpeculationConfig],
        settings: PlannerSettings = PlannerSettings(),
    ) -> None:
        speculative = tuple(dict.fromkeys(each for each in configs if not each.is_plain))
        if len(speculative) > MAX_CONFIGS:
            raise RespecError(
                f"The planner looks at {MAX_CONFIGS} configurations besides plain decoding, not "
                f"{len(speculative)}; choose the ones that can win."
            )
        self.configs = (PLAIN, *speculative)
        self.settings = settings
        self.cost = CostModel(profile, self.configs)
        self.acceptance = Acceptance(self.configs)
        self._index = {config: i for i, config in enumerate(self.configs)}
        self._chosen = 0  # what runs but for probes
        self._running = 0
        self._reason = "first"
        self._decisions = 0
        self._probe_looks = 0  # requests that the probe which runs has yet to look at
        self._probe_rounds = 0  # that it may still take
        self._probe_tokens = 0
        self._stay = _Stay(settings.first_dwell_steps)
        self._last = BatchStats(1, self.cost.contexts[0], (1, 0, 0))

    def decide(self, stats: BatchStats) -> Plan:
        """The plan of the next round; under 50 microseconds with eight configurations."""
        self._last = stats
        place = self.cost.place(stats.batch_size, stats.mean_context_tokens)
        of, classes = self.acceptance.of, stats.requests_per_class
        options = []
        for index, seconds in enumerate(self.cost.relatives(place)):
            estimate = of(index, classes)
            options.append(_Option(index, estimate.accepted / seconds, seconds, estimate))
        self._stay.step()
        self._probe_tokens = 0
        probing = self._probe_looks > 0 and self._probe_rounds > 0
        if probing and self._still_open(options, place):
            self._probe_looks -= stats.batch_size
            self._probe_rounds -= 1
        else:
            self._choose(options, place, stats)
            self._running = self._chosen
            self._decisions += 1
            if self._decisions == 1:
                self._probe_tokens = min(PROBE_OBSERVATIONS, stats.batch_size)
            elif self._decisions > FIRST_ROUNDS and self._decisions % PROBE_STRIDE == 1:
                self._consider_learning(options, place, stats)
        config = self.configs[self._running]
        seconds = options[self._running].relative_time * self.cost.common
        return Plan(config, self._reason, self._probe_tokens, seconds)

    def record(self, step: StepRecord) -> None:
        """Learn from a round: ranks always, its time where it was measured."""
        self.acceptance.record(step)
        index = self._index.get(step.config)
        if index is not None and step.seconds is not None and step.seconds > 0.0:
            place = self.cost.place(step.batch_size, step.mean_context_tokens)
            self.cost.record(index, place, step.seconds)

    def on_drafter_push(self) -> None:
        """The old drafter's ranks become a guess, unsure enough to ask for a probe."""
        self.acceptance.forget()
        self._probe_looks = 0

    def table(self) -> dict[str, Any]:
        """Configurations against batch sizes, at the last batch's context and temperatures."""
        last = self._last
        return {
            "policy": "auto",
            "current": str(self.configs[self._running]),
            "reason": self._reason,
            "reason_meaning": PLAN_REASONS[self._reason],
            "batch_size": last.batch_size,
            "mean_context_tokens": last.mean_context_tokens,
            "expected_dwell_steps": self._stay.remaining,
            "acceptance": self.acceptance.table(),
            "rows": [
                self._row(size, last) for size in sorted({*self.cost.batch_sizes, last.batch_size})
            ],
        }

    def _row(self, batch_size: float, last: BatchStats) -> dict[str, Any]:
        place = self.cost.place(batch_size, last.mean_context_tokens)
        cells: list[dict[str, Any]] = []
        for index, config in enumerate(self.configs):
            estimate = self.acceptance.of(index, last.requests_per_class)
            step_s = self.cost.seconds(index, place)
            cells.append(
                {
                    "config": str(config),
                    "step_s": step_s,
                    "step_relative_error": self.cost.relative_error(index, place),
                    "expected_accepted": estimate.accepted,
                    "expected_accepted_error": estimate.error,
                    "tokens_per_s": batch_size * estimate.accepted / step_s,
                }
            )
        best = max(cells, key=lambda cell: cell["tokens_per_s"])
        return {"batch_size": batch_size, "best": best["config"], "configs": cells}

    def _choose(self, options: list[_Option], place: Place, stats: BatchStats) -> None:
        if self._decisions < FIRST_ROUNDS:
            self._chosen, self._reason = 0, "first"
            return
        best = max(options, key=lambda option: option.rate)
        current = options[self._chosen]
        if best is current:
            self._reason = "best"
            return
        dwell_s = self._stay.remaining * current.relative_time
        ahead = best.rate - current.rate - self._difference_error(best, current, place)
        if ahead * dwell_s > self._change_seconds(current, best, stats) * best.rate:
            self._chosen, self._reason = best.index, "best"
            self._stay.change()
        else:
            self._reason = "hold"

    def _consider_learning(self, options: list[_Option], place: Place, stats: BatchStats) -> None:
        """Do what teaches most for its cost, if anything pays: a probe, or the drafter's guesses.

        What it gains: how much better the choice after it is expected to be than the choice now,
        for as many steps as the choice is expected to last.
        """
        chosen = options[self._chosen]
        least = math.ceil(PROBE_OBSERVATIONS / stats.batch_size)
        rounds = max(LEAST_PROBE_ROUNDS, least)
        change_s = self._change_seconds(chosen, options[-1], stats)  # all but PLAIN cost the same
        most, probed = 0.0, None
        for option in options:
            if option is chosen:
                continue
            if self._worth_at_most(option, chosen, place, rounds, change_s) > most:
                worth = self._probe_worth(option, chosen, place, stats, rounds, change_s)
                if worth > most:
                    most, probed = worth, option
        if chosen.index == 0 and self._guesses_pay(options, stats, most):
            self._probe_tokens = min(PROBE_OBSERVATIONS, stats.batch_size)
            return
        if probed is None:
            return
        for longer in (4 * least, 16 * least):  # one long look, where it pays, is one change
            worth = self._probe_worth(probed, chosen, place, stats, longer, change_s)
            if worth > most:
                most, rounds = worth, longer
        self._running, self._reason = probed.index, "probe"
        self._probe_looks = (rounds - 1) * stats.batch_size
        self._probe_rounds = PROBE_STRETCH * (rounds - 1)

    def _worth_at_most(
        self, option: _Option, chosen: _Option, place: Place, rounds: int, change_s: float
    ) -> float:
        """Cheap, and no less than :meth:`_probe_worth`: as if a probe taught all that is unsure."""
        mine, theirs = option.estimate, chosen.estimate
        time, other_time = option.relative_time, chosen.relative_time
        unsure = math.hypot(
            mine.spread / time + theirs.spread / other_time,
            mine.factor_error / time,
            option.rate * self.cost.relative_error(option.index, place),
        )
        behind = chosen.rate - option.rate
        if abs(behind) > 4.0 * unsure:
            return 0.0
        gain = _expected_gain(abs(behind), unsure) * self._stay.remaining * other_time
        loss = behind * rounds * time if behind > 0.0 else 0.0
        return gain - loss - (change_s * chosen.rate if option.index else 0.0)

    def _probe_worth(
        self,
        option: _Option,
        chosen: _Option,
        place: Place,
        stats: BatchStats,
        rounds: int,
        change_s: float,
    ) -> float:
        """Tokens per request that a probe of so many rounds is expected to gain, less its cost."""
        behind = chosen.rate - option.rate
        taught = self._taught(option, chosen, place, rounds, rounds * stats.batch_size)
        if abs(behind) > 4.0 * taught:
            return 0.0  # the probe could not turn the choice
        gain = _expected_gain(abs(behind), taught) * self._stay.remaining * chosen.relative_time
        loss = max(behind, 0.0) * rounds * option.relative_time
        return gain - loss - (change_s * chosen.rate if option.index else 0.0)

    def _guesses_pay(self, options: list[_Option], stats: BatchStats, more_than: float) -> bool:
        """While decoding plainly: whether the drafter's guesses are worth more than that.

        They cost an extend over what the drafter lacks and show depth 1 alone; deeper depths lean
        on it with the weight of their prior, and learn in proportion to what depth 1 learns.
        """
        plain = options[0]
        guesses = min(PROBE_OBSERVATIONS, stats.batch_size)
        behind = max(1.0, stats.gap_tokens / stats.batch_size)
        cost_s = self.cost.profile.extend_seconds(
            guesses * behind, guesses, stats.mean_context_tokens
        )
        needed = (more_than + cost_s * plain.rate) / (self._stay.remaining * plain.relative_time)
        for option in options[1:]:
            mine, weights = option.estimate, option.estimate.weights
            share = _share(guesses, weights[0])
            apart = abs(plain.rate - option.rate)
            if (
                _expected_gain(apart, math.sqrt(share) * mine.spread / option.relative_time)
                <= needed
            ):
                continue  # were every depth taught as much as the first, it would not do
            first, *deeper = mine.errors
            taught = first * first
            for error, weight in zip(deeper, weights[1:], strict=True):
                taught += error * error * PRIOR_WEIGHT / (PRIOR_WEIGHT + weight)
            if _expected_gain(apart, math.sqrt(share * taught) / option.relative_time) > needed:
                return True
        return False

    def _still_open(self, options: list[_Option], place: Place) -> bool:
        """Whether the probe that runs may still turn the choice.

        It may not once either of the two is surely better. Nor where a third is surely better than
        both: that one is to run.
        """
        option, chosen = options[self._running], options[self._chosen]
        apart = abs(chosen.rate - option.rate)
        if apart > 2.0 * self._difference_error(option, chosen, place):
            return False
        best = max(options, key=lambda each: each.rate)
        if best is option or best is chosen:
            return True
        ahead = best.rate - max(option.rate, chosen.rate)
        return ahead < 2.0 * self._difference_error(best, option, place)

    def _taught(
        self, option: _Option, chosen: _Option, place: Place, rounds: int, looks: int
    ) -> float:
        """Standard deviation of what a probe may move the difference of the two rates by.

        A probe teaches the option's own time and factor, and the depths that it looks at more
        often than the chosen one does anyway.
        """
        a, b = 1.0 / option.relative_time, 1.0 / chosen.relative_time
        mine, theirs = option.estimate, chosen.estimate
        total = option.rate**2 * self.cost.teaches(option.index, place, rounds)
        total += (a * mine.factor_error) ** 2 * _share(looks, mine.factor_rounds)
        wider = self.configs[option.index].topk > self.configs[chosen.index].topk
        known, theirs_errors, weights = theirs.reach, theirs.errors, mine.weights
        for depth, reach in enumerate(mine.reach):
            new = looks * (reach if wider else reach - known[depth])
            if new > 0.0:
                weight = weights[depth]
                if weight < MEMORY_OBSERVATIONS:
                    error = a * mine.errors[depth] - b * theirs_errors[depth]
                    share = (1.0 - weight / MEMORY_OBSERVATIONS) * new / (new + weight)
                    total += error * error * share
        return math.sqrt(total)

    def _difference_error(self, one: _Option, two: _Option, place: Place) -> float:
        """Standard error of the difference of two rates.

        What is unsure about a depth shifts both the same way, so depths are subtracted before
        they are squared; a long and a short chain differ only by the deep end.
        """
        a, b = 1.0 / one.relative_time, 1.0 / two.relative_time
        total = (a * one.estimate.factor_error) ** 2 + (b * two.estimate.factor_error) ** 2
        total += (one.rate * self.cost.relative_error(one.index, place)) ** 2
        total += (two.rate * self.cost.relative_error(two.index, place)) ** 2
        for x, y in zip(one.estimate.errors, two.estimate.errors, strict=True):
            difference = a * x - b * y
            total += difference * difference
        return math.sqrt(total)

    def _change_seconds(self, here: _Option, there: _Option, stats: BatchStats) -> float:
        """What the change itself costs: the catch-up out of plain decoding, else a swap."""
        if there.index == 0:
            return 0.0
        catch_up = self.cost.profile.extend_seconds(
            stats.gap_tokens, stats.batch_size, stats.mean_context_tokens
        )
        return catch_up + self.cost.profile.switch_s


class _Stay:
    """How long a choice lasts, in steps: the mean of past stays, or the present one if longer."""

    def __init__(self, first: float) -> None:
        self._mean, self._steps = first, 0

    def step(self) -> None:
        self._steps += 1

    def change(self) -> None:
        self._mean += 0.2 * (self._steps - self._mean)
        self._steps = 0

    @property
    def remaining(self) -> float:
        return min(max(self._mean, float(self._steps), 1.0), MEMORY_STEPS)


def _share(new: float, weight: float) -> float:
    """Share of a variance that ``new`` observations take away from ``weight`` old ones.

    Evidence does not grow beyond its memory, so what is known that well teaches nothing.
    """
    return max(0.0, 1.0 - weight / MEMORY_OBSERVATIONS) * new / (new + weight)


def _expected_gain(behind: float, error: float) -> float:
    """E[max(0, d)] of d ~ Normal(-behind, error): how much better it is if it is better."""
    if error <= 0.0:
        return max(-behind, 0.0)
    z = -behind / error
    density = math.exp(-0.5 * z * z) / 2.5066282746310002
    below = 0.5 * (1.0 + math.erf(z / 1.4142135623730951))
    return error * density - behind * below
