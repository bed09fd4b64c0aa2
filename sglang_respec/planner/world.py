"""The truth behind a simulation: what a machine takes and what a target accepts.

The truth is richer than what the planner assumes. A place in a text is easy or hard for the
drafter and a round starts at one or the other, so ranks at different depths are correlated; the
drafter knows which, so real trees are deep at easy places and wide at hard ones; requests differ;
a machine differs from its profile by a hidden factor per configuration and batch bucket.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from sglang_respec.core import PLAIN, RankCounts, SpeculationConfig
from sglang_respec.planner.cost import BUCKETS, CostModel, Place
from sglang_respec.planner.profile import Profile
from sglang_respec.planner.traces import OFFSETS
from sglang_respec.planner.trees import Node, RankModel, best_nodes

EASY, HARD = 0.9, -0.9  # logit of the first candidate at an easy place and a hard one
PER_DEPTH = 0.4  # logit lost with each depth
OFF_FIRST = 0.3  # logit lost once the path left the first candidates
CLASS_LOGIT = (0.0, -0.2, -0.5)  # sampled tokens are guessed less often than the likeliest
LATER = 0.45  # hazard of rank r > 1 over the square root of the first's chance over r - 1
QUALITY_STEP = 0.05  # qualities are rounded to this, so that tables are found again

PROFILE_ERROR = 0.05  # standard deviation of a configuration's hidden log factor
CELL_ERROR = 0.03  # and of each of its batch buckets'
NOISE = 0.04  # of one measured step (log)
STALL_CHANCE, STALL_FACTOR = 0.01, 2.0  # some steps take twice as long: a prefill, another job

Visit = tuple[int, bool, int]  # depth, path on first candidates, rank (0: none of the candidates)


def place_model(logit: float, depths: int, candidates: int) -> RankModel:
    """P(rank) at one kind of place; `logit` is that of the first candidate at depth 1."""

    def row(x: float) -> list[float]:
        first = 1.0 / (1.0 + math.exp(-x))
        ranks, left = [first], 1.0 - first
        for r in range(2, candidates + 1):
            ranks.append(left * LATER * math.sqrt(first / (r - 1)))
            left -= ranks[-1]
        return ranks

    first = [row(logit - PER_DEPTH * depth) for depth in range(depths)]
    other = [row(logit - OFF_FIRST - PER_DEPTH * depth) for depth in range(depths)]
    return RankModel(first, other)


@dataclass(frozen=True)
class Outcomes:
    """Everything one round of one request can do, with its chances summed up."""

    cumulative: list[float]
    drafts: list[int]  # accepted draft tokens of each outcome
    visits: list[tuple[Visit, ...]]
    expected: float  # accepted length, bonus token included


@lru_cache(maxsize=100_000)
def outcomes(
    config: SpeculationConfig, quality: float, offset: int, temperature_class: int
) -> Outcomes:
    """The chances of a round: half of all rounds start at an easy place, half at a hard one."""
    chances, drafts, visits = [], [], []
    for place in (EASY, HARD):
        logit = quality + OFFSETS[offset] + CLASS_LOGIT[temperature_class] + place
        model = place_model(logit, config.num_steps, config.topk)
        for chance, depth, seen in _ends(model, config):
            chances.append(0.5 * chance)
            drafts.append(depth)
            visits.append(seen)
    expected = 1.0 + sum(c * d for c, d in zip(chances, drafts, strict=True))
    return Outcomes(list(accumulate(chances)), drafts, visits, expected)


def _ends(
    model: RankModel, config: SpeculationConfig
) -> list[tuple[float, int, tuple[Visit, ...]]]:
    """(chance, accepted drafts, visits) of every way a round can end."""
    nodes = best_nodes(model, config)
    root = Node(0, 1, True, -1, 1.0, config.num_steps > 0)
    seen_at: dict[int, tuple[Visit, ...]] = {-1: ()}
    ranks_at: dict[int, set[int]] = {}
    for index, node in enumerate(nodes):
        on_first = (nodes[node.parent] if node.parent >= 0 else root).first_ranks
        seen_at[index] = (*seen_at[node.parent], (node.depth, on_first, node.rank))
        ranks_at.setdefault(node.parent, set()).add(node.rank)
    ends = []
    for index, node in enumerate([root, *nodes], start=-1):
        if not node.expanded:
            ends.append((node.probability, node.depth, seen_at[index]))
            continue
        row = (model.first if node.first_ranks else model.other)[node.depth]
        left = 1.0
        for rank, chance in enumerate(row, start=1):
            left -= chance
            if rank not in ranks_at.get(index, ()):
                seen = (*seen_at[index], (node.depth + 1, node.first_ranks, rank))
                ends.append((node.probability * chance, node.depth, seen))
        missed = (*seen_at[index], (node.depth + 1, node.first_ranks, 0))
        ends.append((node.probability * left, node.depth, missed))
    return ends


@dataclass
class Drawn:
    """One simulated round."""

    accepted: list[int]  # [requests], bonus token included
    ranks: tuple[RankCounts, ...]


def draw_round(
    config: SpeculationConfig,
    quality: float,
    requests: list[tuple[int, int]],  # (offset, temperature class) of each
    rng: random.Random,
) -> Drawn:
    """Draw what each request accepts, and count ranks as a worker would."""
    quality = round(quality / QUALITY_STEP) * QUALITY_STEP
    accepted = []
    ended: dict[tuple[int, int], Counter[int]] = {}
    for key in requests:
        table = outcomes(config, quality, *key)
        end = min(bisect(table.cumulative, rng.random()), len(table.drafts) - 1)
        accepted.append(1 + table.drafts[end])
        ended.setdefault(key, Counter())[end] += 1
    rows: dict[tuple[int, int, bool], list[int]] = {}
    for key, counter in ended.items():
        visits = outcomes(config, quality, *key).visits
        for end, count in counter.items():
            for depth, on_first, rank in visits[end]:
                row = rows.setdefault((key[1], depth, on_first), [0] * (config.topk + 1))
                row[rank] += count
    ranks = tuple(RankCounts(*key, tuple(row[1:]), row[0]) for key, row in sorted(rows.items()))
    return Drawn(accepted, ranks)


def expected_accepted(
    config: SpeculationConfig, quality: float, requests: Counter[tuple[int, int]]
) -> float:
    """The mean accepted length of these requests, which only the oracle knows."""
    if config.is_plain:
        return 1.0
    quality = round(quality / QUALITY_STEP) * QUALITY_STEP
    total = sum(n * outcomes(config, quality, *key).expected for key, n in requests.items())
    return total / requests.total()


class Machine:
    """The profile, with the hidden factors by which this machine differs from it."""

    def __init__(self, profile: Profile, configs: Sequence[SpeculationConfig], seed: int) -> None:
        self.profile = profile
        self.configs = (PLAIN, *(each for each in configs if not each.is_plain))
        self._model = CostModel(profile, self.configs)
        self._index = {config: i for i, config in enumerate(self.configs)}
        self._factors = [_hidden_factors(seed, config) for config in self.configs]

    def seconds(self, config: SpeculationConfig, batch: float, context: float) -> float:
        """The mean of a round."""
        return self._seconds(self._index[config], self._model.place(batch, context))

    def _seconds(self, index: int, place: Place) -> float:
        return self._model.profiled(index, place) * self._factors[index][place[4]]

    def best(
        self, batch: int, context: float, quality: float, requests: Counter[tuple[int, int]]
    ) -> tuple[SpeculationConfig, float]:
        """What the oracle runs, and its mean tokens per second for the whole batch."""
        place = self._model.place(batch, context)
        rates = [
            batch * expected_accepted(config, quality, requests) / self._seconds(i, place)
            for i, config in enumerate(self.configs)
        ]
        rate = max(rates)
        return self.configs[rates.index(rate)], rate

    def measured(self, seconds: float, rng: random.Random) -> float:
        """What a clock would show of a round that takes ``seconds`` in the mean."""
        stall = STALL_FACTOR if rng.random() < STALL_CHANCE else 1.0
        return seconds * stall * math.exp(rng.gauss(0.0, NOISE))


def _hidden_factors(seed: int, config: SpeculationConfig) -> list[float]:
    """[BUCKETS] what this machine takes over what the profile says."""
    rng = random.Random(f"{seed}/{config}")  # noqa: S311
    whole = rng.gauss(0.0, PROFILE_ERROR)
    return [math.exp(whole + rng.gauss(0.0, CELL_ERROR)) for _ in range(BUCKETS)]
