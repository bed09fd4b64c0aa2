"""Which configurations to capture at the start: the few that can win, within a memory budget."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.planner import MAX_CONFIGS
from sglang_respec.planner.profile import Profile
from sglang_respec.planner.trees import RankModel, expected_per_depth

FIRST_RANKS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # drafters from poor to excellent
LATER_SHARE = 0.45  # of what rank r - 1 leaves over, rank r takes so much of the first's share
WORTH = 0.001  # a configuration must raise the mean over all cases by so much (relative)


def choose_configs(
    profile: Profile,
    candidates: Sequence[SpeculationConfig],
    budget_bytes: int | None = None,
    max_batch_size: float | None = None,
    limit: int = MAX_CONFIGS,
) -> list[SpeculationConfig]:
    """At most ``limit`` of ``candidates``, the largest first, as graphs are best captured.

    Judged over every batch size and context the profile knows (up to ``max_batch_size``) and
    drafters from poor to excellent: one after another, the candidate that raises the mean of the
    best relative throughput most joins, while its graph memory still fits. PLAIN costs nothing
    here and is always there. Graph memory the profile does not know counts as none.
    """
    known = [each for each in dict.fromkeys(candidates) if not each.is_plain]
    for each in known:
        if not profile.composes(each):
            raise RespecError(f"The profile has no step times for {each}; leave it out.")
    if budget_bytes is not None and known:
        smallest = min(known, key=lambda each: profile.graph_bytes.get(each, 0))
        needed = profile.graph_bytes.get(smallest, 0)
        if needed > budget_bytes:
            raise RespecError(
                f"A graph memory budget of {_mib(budget_bytes)} holds none of the configurations: "
                f"the smallest, {smallest}, needs {_mib(needed)}; raise the budget, or take the "
                "policy plain."
            )
    gains = {each: _relative_throughput(profile, each, max_batch_size) for each in known}
    best = [1.0] * len(next(iter(gains.values()), ()))
    left = budget_bytes
    chosen: list[SpeculationConfig] = []
    while len(chosen) < limit:
        fitting = [
            each
            for each in known
            if each not in chosen and (left is None or profile.graph_bytes.get(each, 0) <= left)
        ]
        joined = {each: list(map(max, best, gains[each])) for each in fitting}
        winner = max(fitting, key=lambda each: sum(joined[each]), default=None)
        if winner is None or sum(joined[winner]) < sum(best) * (1.0 + WORTH):
            break
        chosen.append(winner)
        best = joined[winner]
        if left is not None:
            left -= profile.graph_bytes.get(winner, 0)
    return sorted(chosen, key=lambda each: (-each.num_draft_tokens, -each.num_steps, -each.topk))


def _relative_throughput(
    profile: Profile, config: SpeculationConfig, max_batch_size: float | None
) -> list[float]:
    """Throughput over plain decoding's, for every batch size, context and drafter."""
    grid = profile.rounds[PLAIN] if PLAIN in profile.rounds else profile.stages["plain"]
    sizes = [b for b in grid.batch_sizes if max_batch_size is None or b <= max_batch_size]
    accepted = [1.0 + sum(expected_per_depth(_drafter(p, config), config)) for p in FIRST_RANKS]
    ratios = []
    for batch in sizes or grid.batch_sizes[:1]:
        for context in grid.context_tokens:
            speed = profile.round_seconds(PLAIN, batch, context) / profile.round_seconds(
                config, batch, context
            )
            ratios += [each * speed for each in accepted]
    return ratios


def _drafter(first: float, config: SpeculationConfig) -> RankModel:
    row, left = [first], 1.0 - first
    while len(row) < config.topk:
        row.append(left * LATER_SHARE * first)
        left -= row[-1]
    rows = [row] * config.num_steps
    return RankModel(rows, rows)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
