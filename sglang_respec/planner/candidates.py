"""Which shapes a server measures at its start: chains and trees within the one it was sized for."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_respec.core import SpeculationConfig
from sglang_respec.planner.choose import choose_configs
from sglang_respec.planner.planner import MAX_CONFIGS
from sglang_respec.planner.profile import Profile

CHAIN_STEPS = (1, 2, 3, 5, 7)
SMALLEST_TREE = 3  # nodes: the root and two candidates
# Part of the largest tree's steps, of its top-k and of its nodes. Small trees suit large batches.
TREES = ((1.0, 1.0, 0.5), (0.6, 1.0, 0.5), (0.6, 0.5, 0.375))


def candidate_shapes(
    own: SpeculationConfig, listed: Sequence[SpeculationConfig] = ()
) -> tuple[SpeculationConfig, ...]:
    """The server's own shape, then what may win beside it, the likeliest first.

    own: what SGLang sized its buffers for; no candidate exceeds it in steps, top-k or nodes.
    listed: the shapes a user named. If there are any they are all the candidates.
    """
    if listed:
        return tuple(dict.fromkeys([own, *(each for each in listed if not each.is_plain)]))
    chains = [
        SpeculationConfig(steps, 1, steps + 1)
        for steps in (3, *(each for each in CHAIN_STEPS if each != 3))
        if steps <= own.num_steps and steps < own.num_draft_tokens
    ]
    found = tuple(dict.fromkeys([own, *_mixed(chains, _trees(own))]))
    return found[:MAX_CONFIGS]


def _trees(own: SpeculationConfig) -> list[SpeculationConfig]:
    if own.topk == 1 or own.num_draft_tokens < SMALLEST_TREE:
        return []
    found = []
    for of_steps, of_topk, of_nodes in TREES:
        steps = max(1, round(of_steps * own.num_steps))
        topk = max(2, round(of_topk * own.topk))
        nodes = max(SMALLEST_TREE, round(of_nodes * own.num_draft_tokens))
        size = 1 + topk + (steps - 1) * topk * topk
        found.append(SpeculationConfig(steps, topk, min(nodes, size)))
    return found


def _mixed(
    chains: list[SpeculationConfig], trees: list[SpeculationConfig]
) -> list[SpeculationConfig]:
    """A chain, a tree, a chain, ...: whatever comes late may find no memory left."""
    mixed = []
    while chains or trees:
        mixed += [each.pop(0) for each in (chains, trees) if each]
    return mixed


def shapes_to_keep(
    profile: Profile,
    candidates: Sequence[SpeculationConfig],
    budget_bytes: int | None,
    max_batch_size: float | None = None,
) -> tuple[SpeculationConfig, ...]:
    """The server's own shape, which is there in any case, and those that can win beside it.

    candidates: the own shape first. budget_bytes: for the graphs of the others; None sets no
    limit. A budget in which none of them fits leaves the own shape alone.
    """
    own = candidates[0]
    # The own shape takes part, so that none is kept that is better than all but it.
    free = Profile(
        **{**vars(profile), "graph_bytes": {**profile.graph_bytes, own: 0}}
    )  # its graphs are not ours to save
    chosen = choose_configs(free, candidates, budget_bytes, max_batch_size)
    kept = [each for each in chosen if each != own]
    return (own, *kept[: MAX_CONFIGS - 1])
