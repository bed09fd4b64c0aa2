"""What the drafter's guesses are worth, learned from the ranks of the target's tokens.

One table per temperature class counts, at each depth, how often the target's token was candidate
r given that it was none of the r - 1 before: the hazard of rank r. A chain shows only rank 1, a
tree shows ranks up to its topk, a probe only depth 1. Hazards join them all without bias, as in
survival analysis: a round that looked at one candidate says nothing of the second and is not
counted there. From the hazards follows the expected accepted length of any chain or tree.

Assumed: the rank at one depth depends on the path before it only through its depth and through
whether it left the drafter's first candidates. Real drafters are confident at some places and not
at others, and real trees follow that confidence, so a tree is worth more than these averages say.
A factor per tree, learned while it runs and shared with trees that do not, takes that up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_respec.core import TEMPERATURE_CLASSES, RankCounts, SpeculationConfig, StepRecord
from sglang_respec.planner.trees import RankModel, expected_per_depth

FIRST_HAZARD = 0.55  # cold start: the drafter's first candidate is right so often
LATER_HAZARD = 0.25  # and the second, given that the first was wrong; rank r: over sqrt(r - 1)
PRIOR_WEIGHT = 4.0  # observations the prior counts as
AGED_WEIGHT = 8.0  # evidence ages to this weight, never below: the last known mean stays
PUSHED_WEIGHT = 2.0  # what is left of it when the drafter changes: less than the prior
MEMORY_OBSERVATIONS = 2000.0  # evidence falls to 1/e after so many newer observations of its kind
MEMORY_STEPS = 3000.0  # or after so many steps of any batch size, plain ones included
AGE_STRIDE = 0.01  # rows are aged together, whenever this much age has come together
FACTOR_ROUNDS = 200.0  # rounds of one request until a tree's own factor outweighs its siblings'
YOUNG = 1.2  # while the evidence grew by this factor, every estimate is refreshed at once
PROBE_OBSERVATIONS = 64  # requests a probe looks at
FACTOR_ERROR = 0.05  # relative standard error of the factor of a tree that never ran


@dataclass(frozen=True)
class Estimate:
    """Expected accepted length of one configuration, bonus token included."""

    accepted: float
    errors: tuple[float, ...]  # [depths] standard error that each depth's uncertainty causes
    factor_error: float  # standard error from the tree's factor; 0 for a chain
    factor_rounds: float  # rounds of one request behind the factor
    reach: tuple[float, ...]  # [depths] chance that a round looks at this depth
    weights: tuple[float, ...]  # [depths] observations behind each depth
    spread: float  # root of the sum of the squares of `errors`

    @property
    def error(self) -> float:
        return math.hypot(self.spread, self.factor_error)


class RankTable:
    """Decayed counts of one temperature class."""

    def __init__(self, depths: int, candidates: int) -> None:
        self.depths, self.candidates = depths, candidates
        self._cold = [FIRST_HAZARD, *(LATER_HAZARD / math.sqrt(r) for r in range(1, candidates))]
        # [path][depth][rank]; path 1 is on the drafter's first candidates
        self._hits = [[[0.0] * candidates for _ in range(depths)] for _ in range(2)]
        self._seen = [[[0.0] * candidates for _ in range(depths)] for _ in range(2)]
        self._age = 0.0
        self._refreshed_at = 0.0

    def has_grown(self) -> bool:
        """Whether the evidence at depth 1 is much more, or much less, than at the last call
        that said so."""
        now = self._seen[1][0][0] + PRIOR_WEIGHT
        if self._refreshed_at / YOUNG <= now <= self._refreshed_at * YOUNG:
            return False
        self._refreshed_at = now
        return True

    def add(self, counts: RankCounts) -> None:
        if counts.depth > self.depths:
            return
        path = int(counts.first_ranks)
        hits, seen = self._hits[path][counts.depth - 1], self._seen[path][counts.depth - 1]
        left = sum(counts.hits) + counts.misses
        keep = math.exp(-left / MEMORY_OBSERVATIONS)
        for rank, count in enumerate(counts.hits[: self.candidates]):
            hits[rank] = keep * hits[rank] + count
            seen[rank] = keep * seen[rank] + left
            left -= count

    def age(self, amount: float) -> None:
        """Let all evidence fade by ``exp(-amount)``, down to AGED_WEIGHT."""
        self._age += amount
        if self._age < AGE_STRIDE:
            return
        self._shrink(math.exp(-self._age), AGED_WEIGHT)
        self._age = 0.0

    def forget(self) -> None:
        """Keep the means, lose the confidence: a new drafter is probably like the old one."""
        self._shrink(0.0, PUSHED_WEIGHT)

    def _shrink(self, keep: float, floor: float) -> None:
        for hit_rows, seen_rows in zip(self._hits, self._seen, strict=True):
            for hits, seen in zip(hit_rows, seen_rows, strict=True):
                for rank, weight in enumerate(seen):
                    if weight > floor:
                        factor = max(keep, floor / weight)
                        hits[rank] *= factor
                        seen[rank] *= factor

    def seen(self, depth: int, rank: int = 1, first_ranks: bool = True) -> float:
        """Weight of the evidence for one hazard; depth and rank from 1."""
        return self._seen[int(first_ranks)][depth - 1][rank - 1]

    def model(self) -> RankModel:
        """P(rank) per depth. On first candidates a depth leans on the one above it, the first
        depth on the cold-start prior; off them it leans on the same depth on them."""
        first, other = [], []
        prior = self._cold
        for depth in range(self.depths):
            prior = _posterior(self._hits[1][depth], self._seen[1][depth], prior)
            first.append(_ranks(prior))
            other.append(_ranks(_posterior(self._hits[0][depth], self._seen[0][depth], prior)))
        return RankModel(first, other)

    def errors(self, model: RankModel, chances: Sequence[float]) -> list[float]:
        """Standard error of the sum of ``chances`` from each depth's own evidence.

        chances[d] = chances[d - 1] * a[d]; a[d] = h + (1 - h) r is made of the first candidate's
        hazard h and what the later candidates add, r. The error of a[d] is carried to the sum by
        its derivative (what comes at d and below, over a[d]).
        """
        tails, tail = [], 0.0
        for chance in reversed(chances):
            tail += chance
            tails.append(tail)
        tails.reverse()
        errors, before = [], 1.0
        for depth, chance in enumerate(chances):
            accepted = min(chance / before, 1.0) if before > 0.0 else 0.0
            h = min(model.first[depth][0], accepted)
            later = (accepted - h) / (1.0 - h) if h < 1.0 else 0.0
            seen = self._seen[1][depth]
            variance = (1.0 - later) ** 2 * h * (1.0 - h) / (seen[0] + PRIOR_WEIGHT)
            if later > 0.0 and self.candidates > 1:
                variance += (1.0 - h) ** 2 * later * (1.0 - later) / (seen[1] + PRIOR_WEIGHT)
            slope = tails[depth] / accepted if accepted > 0.0 else 0.0
            errors.append(slope * math.sqrt(variance))
            before = chance
        return errors


def _posterior(hits: Sequence[float], seen: Sequence[float], prior: Sequence[float]) -> list[float]:
    return [
        (hit + PRIOR_WEIGHT * guess) / (weight + PRIOR_WEIGHT)
        for hit, weight, guess in zip(hits, seen, prior, strict=True)
    ]


def _ranks(hazards: Sequence[float]) -> list[float]:
    """P(rank = r) from the hazards of the ranks."""
    ranks, left = [], 1.0
    for hazard in hazards:
        ranks.append(left * hazard)
        left -= left * hazard
    return ranks


class TreeFactors:
    """Accepted drafts of a tree over what averages predict: its own rounds, then its siblings'."""

    def __init__(self) -> None:
        self._rounds: dict[SpeculationConfig, float] = {}
        self._ratio: dict[SpeculationConfig, float] = {}

    def add(self, config: SpeculationConfig, drafts: float, predicted: float, rounds: int) -> None:
        """drafts, predicted: accepted draft tokens of all ``rounds`` rounds of one request."""
        if config.topk == 1 or predicted <= 0.0:
            return
        weight = self._rounds.get(config, 0.0)
        share = rounds / (weight + rounds)
        ratio = self._ratio.get(config, 1.0)
        self._ratio[config] = ratio + share * (drafts / predicted - ratio)
        self._rounds[config] = min(weight + rounds, MEMORY_OBSERVATIONS)

    def of(self, config: SpeculationConfig) -> tuple[float, float, float]:
        """(factor, its relative standard error, rounds behind it)."""
        if config.topk == 1:
            return 1.0, 0.0, FACTOR_ROUNDS
        total = sum(self._rounds.values())
        pooled = sum(self._ratio[each] * n for each, n in self._rounds.items())
        siblings = (pooled + FACTOR_ROUNDS) / (total + FACTOR_ROUNDS)
        own = self._rounds.get(config, 0.0)
        factor = (own * self._ratio.get(config, 1.0) + FACTOR_ROUNDS * siblings) / (
            own + FACTOR_ROUNDS
        )
        rounds = own + FACTOR_ROUNDS
        return factor, FACTOR_ERROR * math.sqrt(FACTOR_ROUNDS / rounds), rounds

    def forget(self) -> None:
        self._rounds = {each: min(n, FACTOR_ROUNDS) for each, n in self._rounds.items()}


class Acceptance:
    """Estimates for a fixed list of configurations, kept up to date a few at a time.

    A record refreshes the configuration that ran and one more in turn, so its cost does not grow
    with their number.
    """

    def __init__(self, configs: Sequence[SpeculationConfig]) -> None:
        self.configs = tuple(configs)
        depths = max((each.num_steps for each in configs), default=0) or 1
        candidates = max((each.topk for each in configs), default=1)
        self.tables = [RankTable(depths, candidates) for _ in TEMPERATURE_CLASSES]
        self.factors = TreeFactors()
        self._index = {config: i for i, config in enumerate(self.configs)}
        # [class][config] expected accepted drafts by the averages alone, before a tree's factor
        self.averages = [[0.0] * len(self.configs) for _ in self.tables]
        self._turn = 0
        # Of the last batch with several classes, until one of its parts is refreshed.
        self._mixed_for: Sequence[int] = ()
        self._mixtures: list[Estimate | None] = []
        self.estimates: list[list[Estimate]] = [
            self._all_estimates(which) for which in range(len(self.tables))
        ]

    def record(self, step: StepRecord) -> None:
        self._learn_factor(step)
        for counts in step.ranks:
            self.tables[counts.temperature_class].add(counts)
        for which, (table, requests) in enumerate(
            zip(self.tables, step.requests_per_class, strict=True)
        ):
            if requests:
                table.age(1.0 / MEMORY_STEPS)
                self._refresh_some(which, step)

    def forget(self) -> None:
        """A new drafter: the means stay as a guess, the confidence goes."""
        for table in self.tables:
            table.forget()
        self.factors.forget()
        for which in range(len(self.tables)):
            self.estimates[which] = self._all_estimates(which)

    def of(self, index: int, requests_per_class: Sequence[int]) -> Estimate:
        """The estimate for a batch: each class counts by its requests."""
        total = sum(requests_per_class)
        for which, requests in enumerate(requests_per_class):
            if requests == total:
                return self.estimates[which][index]
        if requests_per_class != self._mixed_for:
            self._mixed_for, self._mixtures = requests_per_class, [None] * len(self.configs)
        found = self._mixtures[index]
        if found is None:
            found = self._mixtures[index] = self._mixture(index, requests_per_class, total)
        return found

    def _mixture(self, index: int, requests_per_class: Sequence[int], total: int) -> Estimate:
        shares, parts = [], []
        for which, requests in enumerate(requests_per_class):
            if requests:
                shares.append(requests / total)
                parts.append(self.estimates[which][index])
        errors = _mixed(shares, [part.errors for part in parts], math.hypot)
        return Estimate(
            _total(*[share * part.accepted for share, part in zip(shares, parts, strict=True)]),
            errors,
            _total(*[share * part.factor_error for share, part in zip(shares, parts, strict=True)]),
            parts[0].factor_rounds,
            _mixed(shares, [part.reach for part in parts], _total),
            _mixed(shares, [part.weights for part in parts], _total),
            math.hypot(*errors),
        )

    def seen(self, requests_per_class: Sequence[int]) -> float:
        """Weight of the evidence at depth 1 for this batch, by its least known class."""
        return min(
            table.seen(1)
            for table, requests in zip(self.tables, requests_per_class, strict=True)
            if requests
        )

    def table(self) -> list[dict[str, Any]]:
        """What is believed of the drafter's candidates, for ``GET /respec/plan``.

        Per temperature class and depth, on the drafter's first candidates: the chance that the
        target's token is the first, that it is any of them, and the observations behind it.
        """
        return [
            {
                "temperature_class": name,
                "depths": [
                    {
                        "depth": depth,
                        "first": ranks[0],
                        "any": sum(ranks),
                        "candidates": len(ranks),
                        "observations": table.seen(depth),
                    }
                    for depth, ranks in enumerate(table.model().first, start=1)
                ],
            }
            for name, table in zip(TEMPERATURE_CLASSES, self.tables, strict=True)
        ]

    def _learn_factor(self, step: StepRecord) -> None:
        index = self._index.get(step.config)
        if index is None or step.config.topk == 1:
            return
        predicted = sum(
            requests * raw[index]
            for requests, raw in zip(step.requests_per_class, self.averages, strict=True)
        )
        drafts = step.tokens_committed - step.batch_size
        self.factors.add(step.config, drafts, predicted, step.batch_size)

    def _refresh_some(self, which: int, step: StepRecord) -> None:
        if self.tables[which].has_grown():
            self.estimates[which] = self._all_estimates(which)
            return
        model = self.tables[which].model()
        self._turn = (self._turn + 1) % len(self.configs)
        for index in {self._index.get(step.config, self._turn), self._turn}:
            self.estimates[which][index] = self._estimate(which, index, model)
            if self._mixtures:
                self._mixtures[index] = None

    def _all_estimates(self, which: int) -> list[Estimate]:
        self._mixed_for = ()
        model = self.tables[which].model()
        return [self._estimate(which, i, model) for i in range(len(self.configs))]

    def _estimate(self, which: int, index: int, model: RankModel) -> Estimate:
        config, table = self.configs[index], self.tables[which]
        chances = expected_per_depth(model, config)
        factor, relative_error, rounds = self.factors.of(config)
        drafts = sum(chances)
        self.averages[which][index] = drafts
        padding = (0.0,) * (table.depths - config.num_steps)
        errors = tuple(factor * e for e in table.errors(model, chances)) + padding
        return Estimate(
            1.0 + factor * drafts,
            errors,
            factor * drafts * relative_error,
            rounds,
            tuple([1.0, *chances[:-1]][: config.num_steps]) + padding,
            tuple(
                PRIOR_WEIGHT + table.seen(depth, min(2, config.topk))
                for depth in range(1, table.depths + 1)
            ),
            math.hypot(*errors),
        )


def _mixed(
    shares: Sequence[float],
    vectors: Sequence[Sequence[float]],
    joined: Callable[..., float],
) -> tuple[float, ...]:
    """At each depth what ``joined`` makes of the parts, each by its share."""
    if len(shares) == 2:  # the common case, and on the way of a decision
        a, b = shares
        return tuple([joined(a * x, b * y) for x, y in zip(*vectors, strict=True)])
    return tuple(
        joined(*(share * x for share, x in zip(shares, column, strict=True)))
        for column in zip(*vectors, strict=True)
    )


def _total(*values: float) -> float:
    return sum(values)
