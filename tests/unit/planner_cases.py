"""Small profiles and records for the planner's tests."""

from __future__ import annotations

from sglang_respec.core import PLAIN, BatchStats, RankCounts, SpeculationConfig, StepRecord
from sglang_respec.planner.grid import Grid
from sglang_respec.planner.profile import Profile, ProfileKey

CHAIN = SpeculationConfig(3, 1, 4)
LONG = SpeculationConfig(7, 1, 8)
TREE = SpeculationConfig(3, 4, 8)
KEY = ProfileKey("target", "drafter", "H100", "tp=1", "bfloat16", (("sglang", "0.5.23"),))
SIZES, CONTEXTS = (1.0, 16.0, 64.0), (128.0, 4096.0)


def grid(seconds_of, widths=(1.0,), sizes=SIZES, contexts=CONTEXTS) -> Grid:
    """A grid of ``seconds_of(width, batch size, context)``."""
    return Grid.from_measurements(
        widths,
        sizes,
        contexts,
        [[[seconds_of(w, b, c) for c in contexts] for b in sizes] for w in widths],
    )


def profile(**changes) -> Profile:
    """A machine on which a round costs 10 ms plus 20 microseconds per row, drafts a tenth."""

    def target(w, b, c):
        return 1e-2 + 2e-5 * w * b + 1e-9 * b * c

    def drafter(w, b, c):
        return 0.1 * target(w, b, c)

    values = {
        "key": KEY,
        "kind": "synthetic",
        "source": "made up",
        "stages": {
            "plain": grid(target),
            "verify": grid(target, (1.0, 8.0)),
            "draft_step": grid(drafter, (1.0, 8.0)),
            "extend": grid(drafter, (1.0, 512.0)),
        },
    }
    return Profile(**{**values, **changes})


def stats(batch=8, context=1000.0, gap=0, which=0) -> BatchStats:
    classes = [0, 0, 0]
    classes[which] = batch
    return BatchStats(batch, context, tuple(classes), gap)


def chain_ranks(probability: float, rounds: int, depths: int, which=0) -> tuple[RankCounts, ...]:
    """What a chain would show if every guess were right with this probability."""
    rows, left = [], float(rounds)
    for depth in range(1, depths + 1):
        hits = round(left * probability)
        rows.append(RankCounts(which, depth, True, (hits,), round(left) - hits))
        left = hits
    return tuple(rows)


def record(config=PLAIN, batch=8, context=1000.0, ranks=(), seconds=None, tokens=None, which=0):
    given = stats(batch, context, which=which)
    committed = batch if tokens is None else tokens
    return StepRecord(
        config, batch, context, given.requests_per_class, committed, seconds, tuple(ranks)
    )
