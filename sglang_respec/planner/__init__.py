"""Which configuration pays, now. Pure Python: no torch, no SGLang, no numpy."""

from sglang_respec.planner.planner import Planner, PlannerSettings
from sglang_respec.planner.policies import make_policy
from sglang_respec.planner.policy import Always, Fuzz, Policy
from sglang_respec.planner.profile import Profile, ProfileKey

__all__ = [
    "Always",
    "Fuzz",
    "Planner",
    "PlannerSettings",
    "Policy",
    "Profile",
    "ProfileKey",
    "make_policy",
]
