"""A policy by its name, as `--respec-policy` and `respec simulate --policy` spell it."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_respec.core import SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.planner import Planner
from sglang_respec.planner.policy import POLICIES, Policy, fixed_policy
from sglang_respec.planner.profile import Profile


def make_policy(
    text: str, profile: Profile | None, configs: Sequence[SpeculationConfig], seed: int = 0
) -> Policy:
    """The policy ``text`` names, over ``configs`` (plain decoding is always among them).

    ``sglang-adaptive`` is not made here: it is SGLang's, see `sglang_respec.upstream.adaptive`.
    """
    fixed = fixed_policy(text, configs, seed)
    if fixed is not None:
        return fixed
    if text.strip() != "auto":
        raise RespecError(f"There is no policy {text!r}; it is one of {POLICIES}.")
    if profile is None:
        raise RespecError(
            "The policy 'auto' needs step times; make a profile with `respec profile`, or take "
            "the policy plain or always:STEPS,TOPK,TOKENS."
        )
    return Planner(profile, configs)
