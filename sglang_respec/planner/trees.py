"""Which nodes a draft tree holds, and what they are worth.

SGLang drafts `topk` candidates for each of `topk` beams per step, scores each by the product of
the drafter's probabilities along its path, lets the best `topk` of a step be the next beams, and
keeps the best `num_draft_tokens - 1` of all that was drafted. Here the same rule runs on
probabilities of ranks instead of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from sglang_respec.core import SpeculationConfig

Ranks = Sequence[float]  # [K] P(the target's token is candidate r), r = 1..K; falls with r


@dataclass(frozen=True)
class RankModel:
    """P(rank | the path reached this depth), on the drafter's first candidates and off them."""

    first: Sequence[Ranks]  # [depths][K]
    other: Sequence[Ranks]  # [depths][K]; row 0 is not used, depth 1 has no path behind it


@dataclass(frozen=True)
class Node:
    """One node below the root."""

    depth: int  # 1 or more
    rank: int  # 1 or more, among its parent's candidates
    first_ranks: bool  # it and everything above it has rank 1
    parent: int  # index in the list of nodes; -1 is the root
    probability: float  # that the target's path runs through it
    expanded: bool  # the drafter drafted candidates below it


def best_nodes(model: RankModel, config: SpeculationConfig) -> list[Node]:
    """The nodes below the root that :class:`SpeculationConfig` keeps, parents before children.

    Best first over a heap: children and later siblings are never likelier than what precedes
    them, so nodes leave the heap in the order of their scores, and the first `topk` to leave at a
    depth are the beams of that depth.
    """
    return list(_best_first(model, config))


def _best_first(model: RankModel, config: SpeculationConfig) -> Iterator[Node]:
    topk, steps = config.topk, config.num_steps
    beams = [0] * (steps + 1)
    # (-probability, order, depth, rank, parent, probability of the parent, parent on first ranks)
    heap: list[tuple[float, int, int, int, int, float, bool]] = []
    order = 0
    if steps:
        heap.append((-model.first[0][0], order, 1, 1, -1, 1.0, True))
    for index in range(config.num_draft_tokens - 1):
        if not heap:
            return
        negative, _, depth, rank, parent, behind, on_first = heappop(heap)
        first_ranks = on_first and rank == 1
        beams[depth] += 1
        expanded = depth < steps and beams[depth] <= topk
        yield Node(depth, rank, first_ranks, parent, -negative, expanded)
        if rank < topk:
            row = (model.first if on_first else model.other)[depth - 1]
            order += 1
            heappush(heap, (-behind * row[rank], order, depth, rank + 1, parent, behind, on_first))
        if expanded:
            row = (model.first if first_ranks else model.other)[depth]
            order += 1
            heappush(heap, (negative * row[0], order, depth + 1, 1, index, -negative, first_ranks))


def expected_per_depth(model: RankModel, config: SpeculationConfig) -> list[float]:
    """[num_steps] the chance that the accepted path reaches each depth.

    The expected accepted length is 1 (the bonus token) plus their sum.
    """
    if config.topk == 1:
        chances, reached = [], 1.0
        for row in model.first[: config.num_steps]:
            reached *= row[0]
            chances.append(reached)
        return chances
    chances = [0.0] * config.num_steps
    for node in _best_first(model, config):
        chances[node.depth - 1] += node.probability
    return chances
