"""A profile from rounds that a server runs for itself: what is measured, and in which order.

Every round is measured whole, since that is what a step costs. The order is that of a server with
little time: small batches first, and a batch size counts only if every configuration ran at it.
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
            for size in sizes
            for context in contexts
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
    """Runs the agenda until it is done or the next batch would not end in time.

    A batch of one is measured in any case: without it there is nothing to decide by.
    """
    samples = Samples()
    last_s, last_size = 0.0, 1
    in_time = True
    for size, context in agenda.batches:
        started = bench.elapsed_s()
        if samples.rounds and started + last_s * max(1.0, size / last_size) > budget_s:
            in_time = False
            break
        _first_look(bench, agenda, size, context, samples)
        last_s, last_size = bench.elapsed_s() - started, size
    _look_at_held_out(bench, agenda, samples)
    if in_time:
        _look_again(bench, samples, budget_s)
    samples.seconds = bench.elapsed_s()
    return samples


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
    """The medians as a profile, on the batch sizes that ran at every context that is kept."""
    sizes, contexts = _rectangle(list(samples.rounds))
    configs = list(samples.rounds[sizes[0], contexts[0]])
    rounds = {
        config: Grid.from_measurements(
            (1,),
            sizes,
            contexts,
            [[[statistics.median(samples.rounds[b, c][config]) for c in contexts] for b in sizes]],
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


def _rectangle(batches: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """(batch sizes, contexts) that were all measured with one another: as many as possible."""
    contexts = sorted({context for _, context in batches})
    best: tuple[list[int], list[int]] = ([], [])
    for count in range(1, len(contexts) + 1):
        kept = contexts[:count]
        sizes = sorted(
            {size for size, _ in batches if all((size, each) in batches for each in kept)}
        )
        if len(sizes) * count >= len(best[0]) * len(best[1]):
            best = (sizes, kept)
    return best


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
