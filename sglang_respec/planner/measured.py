"""A profile from rounds that a server runs for itself: what is measured, and in which order.

Every round is measured whole, since that is what a step costs. The order is that of a server with
little time: all batch sizes at a short context before any at a longer one, small ones first. The
largest matters as much as the smallest: beyond what was measured, times are guesses. A batch counts
only if every configuration ran at it; what a long context adds to a large batch that did not run,
or does not fit the pool, is computed from a smaller one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.planner.grid import Grid
from sglang_respec.planner.profile import HeldOut, Profile, ProfileKey

SHORT_CONTEXT, LONG_CONTEXT = 128, 1024  # tokens
BATCH_SIZES = (1, 4, 16, 64, 256)
HELD_OUT_SIZE = 8
EXTEND_WIDTHS = (1, 8, 64, 128)  # tokens per request
LARGEST_EXTEND = 16  # requests
LONGER = 2.0  # times as long, at most, a batch is expected to take at a longer context
LOOKS = 2  # at each round and visit; the first call of all is not counted
MORE_SWEEPS = 3  # visits after the first, where there is time


class Timer(Protocol):
    """A batch of one size and context that stands still: each call runs the same work again."""

    def round_seconds(self, config: SpeculationConfig) -> float:
        """Run one round of this configuration."""

    def extend_seconds(self, tokens: int) -> float:
        """Run one draft-extend over the last ``tokens`` of each request."""


class Bench(Protocol):
    """Where rounds run. On several ranks all calls are made alike on each."""

    def batch(self, batch_size: int, context_tokens: int) -> AbstractContextManager[Timer]:
        """A batch of this size; what it holds is free again afterwards."""

    def elapsed_s(self) -> float:
        """Seconds since the bench was made; the same on every rank."""

    def shared(self, seconds: float) -> float:
        """Rank 0's value, on every rank."""


@dataclass(frozen=True)
class Agenda:
    """What is to be measured, if there is time."""

    configs: tuple[SpeculationConfig, ...]  # PLAIN first
    batches: tuple[tuple[int, int], ...]  # (batch size, context), in this order
    extend_widths: tuple[int, ...]  # empty where the drafter is never behind

    @classmethod
    def within(
        cls,
        configs: Sequence[SpeculationConfig],
        *,
        max_batch_size: int,
        max_context_tokens: int,
        pool_tokens: int,
        reserve_tokens: int,
        window_tokens: int,
    ) -> Agenda:
        """What fits a server. Without room for a batch of one there are no batches.

        pool_tokens: KV slots in all. reserve_tokens: slots of each request beside its context.
        window_tokens: how far the drafter may be behind; 0 where it never is.
        """
        room = max_context_tokens - reserve_tokens
        contexts = [each for each in (SHORT_CONTEXT, LONG_CONTEXT) if each <= room] or [room]
        limit = min(max_batch_size, pool_tokens // max(1, contexts[0] + reserve_tokens))
        sizes = [each for each in BATCH_SIZES if each <= limit]
        if sizes and 1.5 * sizes[-1] <= limit < BATCH_SIZES[-1]:
            sizes.append(limit)
        batches = tuple(
            (size, context)
            for context in contexts
            for size in sizes
            if context > 0 and size * (context + reserve_tokens) <= pool_tokens
        )
        widest = min(window_tokens, contexts[0])
        widths = tuple(each for each in EXTEND_WIDTHS if each <= widest)
        return cls(tuple(dict.fromkeys([PLAIN, *configs])), batches, widths)


@dataclass
class Samples:
    """Seconds as they were measured, by (batch size, context)."""

    rounds: dict[tuple[int, int], dict[SpeculationConfig, list[float]]] = field(
        default_factory=dict
    )
    extends: dict[tuple[int, int], dict[int, list[float]]] = field(default_factory=dict)
    held_out: dict[tuple[int, int], dict[SpeculationConfig, list[float]]] = field(
        default_factory=dict
    )
    seconds: float = 0.0  # all of it


def measure(bench: Bench, agenda: Agenda, budget_s: float) -> Samples:
    """Runs what of the agenda would end in time, in its order.

    A batch of one is measured in any case: without it there is nothing to decide by.
    """
    samples = Samples()
    left_out: set[int] = set()
    for size, context in agenda.batches:
        if samples.rounds:
            expected_s = bench.shared(_expected_s(samples, size, context))
            if size in left_out or bench.elapsed_s() + expected_s > budget_s:
                left_out.add(size)
                continue
        _first_look(bench, agenda, size, context, samples)
    _look_at_held_out(bench, agenda, samples)
    if not left_out:
        _look_again(bench, samples, budget_s)
    samples.seconds = bench.elapsed_s()
    return samples


def _expected_s(samples: Samples, size: int, context: int) -> float:
    """How long a first look at a batch takes, at most: by the nearest one that was measured."""
    smaller = [each for each in samples.rounds if each[0] <= size]
    nearest = max(smaller, key=lambda each: (each[1] == context, each[0]))
    longer = 1.0 if nearest[1] == context else LONGER
    looks = 1 + LOOKS
    one_sweep = sum(map(statistics.median, samples.rounds[nearest].values()))
    return longer * looks * one_sweep * size / nearest[0]


def _first_look(bench: Bench, agenda: Agenda, size: int, context: int, samples: Samples) -> None:
    found: dict[SpeculationConfig, list[float]] = {each: [] for each in agenda.configs}
    with bench.batch(size, context) as timer:
        for config in found:
            timer.round_seconds(config)  # the first allocates
        _sweep(timer, found)
        if size <= LARGEST_EXTEND and context == agenda.batches[0][1] and agenda.extend_widths:
            timer.extend_seconds(agenda.extend_widths[0])
            samples.extends[size, context] = {
                width: [timer.extend_seconds(width) for _ in range(LOOKS)]
                for width in agenda.extend_widths
            }
    samples.rounds[size, context] = found


def _sweep(timer: Timer, found: dict[SpeculationConfig, list[float]]) -> None:
    """In turn, so that a slow moment of the machine meets all configurations alike."""
    for _ in range(LOOKS):
        for config, seconds in found.items():
            seconds.append(timer.round_seconds(config))


def _look_at_held_out(bench: Bench, agenda: Agenda, samples: Samples) -> None:
    """Between two batch sizes that were measured, for plain decoding and the server's own shape."""
    sizes = [size for size, _ in samples.rounds]
    if not min(sizes, default=0) < HELD_OUT_SIZE < max(sizes, default=0):
        return
    context = agenda.batches[0][1]
    found: dict[SpeculationConfig, list[float]] = {each: [] for each in agenda.configs[:2]}
    with bench.batch(HELD_OUT_SIZE, context) as timer:
        for config in found:
            timer.round_seconds(config)
        _sweep(timer, found)
        _sweep(timer, found)
    samples.held_out[HELD_OUT_SIZE, context] = found


def _look_again(bench: Bench, samples: Samples, budget_s: float) -> None:
    """What time is left makes the medians steadier, small batches first: they are cheap."""
    for _ in range(MORE_SWEEPS):
        for (size, context), found in samples.rounds.items():
            started = bench.elapsed_s()
            expected_s = 1.5 * LOOKS * sum(map(statistics.median, found.values()))
            if started + bench.shared(expected_s) > budget_s:
                return
            with bench.batch(size, context) as timer:
                _sweep(timer, found)


def to_profile(
    samples: Samples,
    key: ProfileKey,
    source: str,
    graph_bytes: Mapping[SpeculationConfig, int] | None = None,
) -> Profile:
    """The medians as a profile, completed by :func:`_completed`."""
    short = min(context for _, context in samples.rounds)
    sizes = sorted({size for size, context in samples.rounds if context == short})
    contexts = sorted({context for size, context in samples.rounds if size == sizes[0]})
    configs = list(samples.rounds[sizes[0], contexts[0]])
    rounds = {
        config: Grid.from_measurements(
            (1,),
            sizes,
            contexts,
            [_completed(_medians(samples, config), sizes, contexts)],
        )
        for config in configs
    }
    return Profile(
        key,
        "measured",
        source,
        stages=_extend_stage(samples),
        rounds=rounds,
        graph_bytes=dict(graph_bytes or {}),
        held_out=tuple(
            HeldOut(config, size, context, statistics.median(seconds))
            for (size, context), found in samples.held_out.items()
            for config, seconds in found.items()
        ),
    )


def _medians(samples: Samples, config: SpeculationConfig) -> dict[tuple[int, int], float]:
    return {batch: statistics.median(found[config]) for batch, found in samples.rounds.items()}


def _completed(
    seconds: Mapping[tuple[int, int], float], sizes: Sequence[int], contexts: Sequence[int]
) -> list[list[float]]:
    """[sizes][contexts], all of which were measured at the shortest context or the smallest size.

    What a longer context adds is attention over it, request by request: for a batch that was not
    measured, so much more than for the nearest smaller one as the batch is larger.
    """
    short = contexts[0]
    rows: list[list[float]] = []
    for size in sizes:
        row = []
        for context in contexts:
            if (size, context) in seconds:
                row.append(seconds[size, context])
                continue
            nearest = max(b for b, c in seconds if c == context and b < size)
            added = seconds[nearest, context] - seconds[nearest, short]
            row.append(seconds[size, short] + max(0.0, added) * size / nearest)
        rows.append(row)
    return rows


def _extend_stage(samples: Samples) -> dict[str, Grid]:
    if not samples.extends:
        return {}
    sizes = [size for size, _ in samples.extends]
    context = next(iter(samples.extends))[1]
    widths = list(next(iter(samples.extends.values())))
    seconds = [
        [[statistics.median(samples.extends[size, context][width])] for size in sizes]
        for width in widths
    ]
    return {"extend": Grid.from_measurements(widths, sizes, (context,), seconds)}
