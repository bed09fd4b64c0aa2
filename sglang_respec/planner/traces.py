"""Loads for the simulator: which requests come when, and how good the drafter secretly is.

Time is counted in progress, the share of all tokens already committed, so that every policy meets
the same load whatever its speed.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from sglang_respec.errors import RespecError, did_you_mean

GREEDY, LOW, HIGH = 0, 1, 2
OFFSETS = (-0.4, 0.0, 0.4)  # how much easier or harder one request is for the drafter (logit)


@dataclass(frozen=True)
class Request:
    """One request; `offset` indexes OFFSETS and is hidden from every policy."""

    arrives_at: float  # progress
    prompt_tokens: int
    new_tokens: int
    temperature_class: int
    offset: int


@dataclass(frozen=True)
class Trace:
    """`quality` is the drafter's logit by progress, linear between knots; a push is a jump."""

    name: str
    meaning: str
    requests: tuple[Request, ...]  # by arrival
    max_running: int
    quality: tuple[tuple[float, float], ...]  # (progress, logit), ascending
    pushes: tuple[float, ...] = ()  # progress

    @property
    def tokens(self) -> int:
        return sum(request.new_tokens for request in self.requests)

    def quality_at(self, progress: float) -> float:
        knots = self.quality
        i = bisect_right(knots, (progress, float("inf")))
        if i == 0:
            return knots[0][1]
        if i == len(knots):
            return knots[-1][1]
        (x0, y0), (x1, y1) = knots[i - 1], knots[i]
        return y0 + (y1 - y0) * (progress - x0) / (x1 - x0)


def make_trace(name: str, seed: int) -> Trace:
    """The trace of this name; the seed draws its requests, not its shape."""
    if name not in TRACES:
        raise RespecError(f"There is no trace {name!r}{did_you_mean(name, TRACES)}")
    return TRACES[name](random.Random(f"{name}/{seed}"))  # noqa: S311


def _rl_tail(rng: random.Random) -> Trace:
    return Trace(
        "rl-tail-256", "256 rollouts at once, long-tailed lengths, until the last one ends",
        _rollouts(rng, 256, median=400, temperature_class=HIGH), 256, ((0.0, 1.2),),
    )  # fmt: skip


def _rl_tail_small(rng: random.Random) -> Trace:
    return Trace(
        "rl-tail-64", "64 rollouts at once, longer ones",
        _rollouts(rng, 64, median=800, temperature_class=LOW), 64, ((0.0, 1.0),),
    )  # fmt: skip


def _drift(rng: random.Random) -> Trace:
    return Trace(
        "drift", "32 at a time while the policy moves away from its drafter",
        _rollouts(rng, 192, median=500, temperature_class=LOW), 32, ((0.0, 1.8), (1.0, -1.2)),
    )  # fmt: skip


def _push(rng: random.Random) -> Trace:
    return Trace(
        "push", "48 at a time with a stale drafter; half way a good one is pushed",
        _rollouts(rng, 192, median=500, temperature_class=LOW), 48,
        ((0.0, -1.0), (0.4999, -1.0), (0.5, 1.5)), (0.5,),
    )  # fmt: skip


def _bad_push(rng: random.Random) -> Trace:
    return Trace(
        "bad-push", "24 at a time with a good drafter; half way a bad one is pushed",
        _rollouts(rng, 128, median=500, temperature_class=LOW), 24,
        ((0.0, 1.5), (0.4999, 1.5), (0.5, -1.2)), (0.5,),
    )  # fmt: skip


def _bursts(rng: random.Random) -> Trace:
    trickle = _rollouts(rng, 40, median=250, temperature_class=LOW)
    spread = [_at(request, max(0, i - 8) / len(trickle)) for i, request in enumerate(trickle)]
    bursts = [
        _at(request, 0.1 + 0.2 * number)
        for number in range(5)
        for request in _rollouts(rng, 96, median=150, temperature_class=GREEDY)
    ]
    requests = sorted([*spread, *bursts], key=lambda request: request.arrives_at)
    return Trace(
        "bursts", "8 long requests at a time, and five bursts of 96 short ones",
        tuple(requests), 128, ((0.0, 1.2),),
    )  # fmt: skip


def _steady(rng: random.Random) -> Trace:
    return Trace(
        "steady", "8 at a time, nothing changes",
        _rollouts(rng, 64, median=500, temperature_class=LOW), 8, ((0.0, 1.0),),
    )  # fmt: skip


def _hot(rng: random.Random) -> Trace:
    return Trace(
        "hot", "128 rollouts at a high temperature with a poor drafter",
        _rollouts(rng, 128, median=500, temperature_class=HIGH), 128, ((0.0, -0.4),),
    )  # fmt: skip


TRACES: dict[str, Callable[[random.Random], Trace]] = {
    "rl-tail-256": _rl_tail,
    "rl-tail-64": _rl_tail_small,
    "drift": _drift,
    "push": _push,
    "bad-push": _bad_push,
    "bursts": _bursts,
    "steady": _steady,
    "hot": _hot,
}


def _rollouts(
    rng: random.Random, count: int, median: float, temperature_class: int
) -> tuple[Request, ...]:
    """All at once; lengths are log-normal (sigma 0.8) and end at 4096 tokens."""
    return tuple(
        Request(
            0.0,
            rng.randint(100, 400),
            max(8, min(4096, round(median * rng.lognormvariate(0.0, 0.8)))),
            temperature_class,
            rng.randrange(len(OFFSETS)),
        )
        for _ in range(count)
    )


def _at(request: Request, progress: float) -> Request:
    return Request(
        progress,
        request.prompt_tokens,
        request.new_tokens,
        request.temperature_class,
        request.offset,
    )
