"""w(r): how much each rollout counts in the drafter's loss.

Verification is exact, so no weight can change what the policy samples; it only chooses the
rollouts on which drafting shall be good. All weights are >= 0 with mean about 1 before clipping.
Statistics are those of the rollouts in the buffer, not of one batch.

* ``none``: w = 1.
* ``reward``: w = clip(u / mean(u)), u = r - min(r). ReSpec (arXiv 2510.26475, section 3.3) takes
  w(r) = r by default and says "normalize and clip" without figures; shifting makes it defined for
  negative rewards, dividing by the mean keeps the learning rate's meaning.
* ``advantage``: w = clip(|a| / mean(|a|)), a = (r - mean_g(r)) / (std_g(r) + 1e-4) within the
  group g, as GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1) standardises rewards; the
  trainer's own advantage where it sends one. Rollouts that move the policy count.
* ``length``: w = clip(G / mean(G)), G generated tokens: the longest rollouts end a generation
  phase, and theirs is the time to save (DAS, arXiv 2511.13841).

Where all u, |a| or G are equal to 0 the weights are 1: there is nothing to tell apart. Rollouts
without a reward have weight 1 and no part in the statistics.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_respec.errors import RespecError, did_you_mean
from sglang_respec.learner.rewards import Reward

GRPO_EPS = 1e-4


@dataclass(frozen=True)
class Facts:
    """What a weight may depend on."""

    generated_tokens: int
    reward: Reward | None


WeightRule = Callable[[Sequence[Facts], float], Tensor]
"""(facts of N rollouts, clip) -> [N] float64"""


def weight_rule(name: str) -> WeightRule:
    """The rule of this name. Raises `RespecError` for an unknown one."""
    if name not in RULES:
        raise RespecError(f"There is no weighting {name!r}{did_you_mean(name, RULES)}")
    return RULES[name]


def _none(facts: Sequence[Facts], clip: float) -> Tensor:
    return torch.ones(len(facts), dtype=torch.float64)


def _reward(facts: Sequence[Facts], clip: float) -> Tensor:
    rewards = [None if each.reward is None else each.reward.reward for each in facts]
    lowest = min((r for r in rewards if r is not None), default=0.0)
    return _normalised([None if r is None else r - lowest for r in rewards], clip)


def _advantage(facts: Sequence[Facts], clip: float) -> Tensor:
    return _normalised([None if a is None else abs(a) for a in advantages(facts)], clip)


def _length(facts: Sequence[Facts], clip: float) -> Tensor:
    return _normalised([float(each.generated_tokens) for each in facts], clip)


def advantages(facts: Sequence[Facts]) -> list[float | None]:
    """The trainer's, else the reward standardised within its group (all without one are one)."""
    groups: dict[str, list[float]] = defaultdict(list)
    for each in facts:
        if each.reward is not None:
            groups[each.reward.group].append(each.reward.reward)
    found: list[float | None] = []
    for each in facts:
        if each.reward is None or each.reward.advantage is not None:
            found.append(each.reward.advantage if each.reward else None)
            continue
        rewards = torch.tensor(groups[each.reward.group], dtype=torch.float64)
        spread = float(rewards.std(correction=0)) + GRPO_EPS
        found.append((each.reward.reward - float(rewards.mean())) / spread)
    return found


def _normalised(values: Sequence[float | None], clip: float) -> Tensor:
    """Divided by the mean and cut at ``clip``; 1 where there is no value."""
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else 0.0
    if mean <= 0:
        return torch.ones(len(values), dtype=torch.float64)
    weights = [1.0 if value is None else min(value / mean, clip) for value in values]
    return torch.tensor(weights, dtype=torch.float64)


RULES: dict[str, WeightRule] = {
    "none": _none,
    "reward": _reward,
    "advantage": _advantage,
    "length": _length,
}
