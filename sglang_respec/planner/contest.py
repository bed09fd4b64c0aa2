"""Policies against the oracle, over loads and seeds: what `respec simulate` runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.planner import Planner
from sglang_respec.planner.policy import Always, Fuzz, Policy
from sglang_respec.planner.profile import Profile
from sglang_respec.planner.rivals import Bandit, BatchTable
from sglang_respec.planner.simulate import Result, Run, play_oracle
from sglang_respec.planner.traces import Trace, make_trace
from sglang_respec.planner.world import Machine, expected_accepted

CONFIGS = tuple(
    SpeculationConfig.parse(text)
    for text in ("1,1,2", "2,1,3", "3,1,4", "5,1,6", "7,1,8", "3,4,8", "5,4,16", "5,8,32")
)
BUNDLED = ("gpu_llama8b", "cpu_demo_pair")
SGLANG, SGLANG_ZERO = "sglang-adaptive", "sglang-adaptive-0"
NAMED = ("auto", "plain", SGLANG, SGLANG_ZERO, "batch-table", "bandit", "fuzz")
TABLE_CONTEXT_TOKENS = 512.0  # of the prompts on which a batch table is calibrated

MakeSglang = Callable[[Sequence[SpeculationConfig]], Policy]


def policy_names() -> list[str]:
    """Every policy by name: the named ones but fuzz, then each configuration alone."""
    return [*NAMED[:-1], *(f"always:{config}" for config in CONFIGS)]


def load_profile(name: str) -> Profile:
    """A bundled profile by its name, or a file."""
    if name in BUNDLED:
        folder = resources.files("sglang_respec.planner") / "profiles"
        with resources.as_file(folder / f"{name}.json") as path:
            return Profile.load(path)
    if not Path(name).exists():
        raise RespecError(
            f"There is no profile {name!r}; give a file, or one of {', '.join(BUNDLED)}."
        )
    return Profile.load(name)


@dataclass(frozen=True)
class Match:
    """One profile, trace and seed; every policy meets the same requests and the same machine."""

    profile_name: str
    profile: Profile
    trace: Trace
    machine: Machine
    seed: int

    @classmethod
    def make(cls, profile_name: str, trace_name: str, seed: int) -> Match:
        profile = load_profile(profile_name)
        configs = [config for config in CONFIGS if profile.composes(config)]
        machine = Machine(profile, configs, seed)
        return cls(profile_name, profile, make_trace(trace_name, seed), machine, seed)

    def play(self, name: str, make_sglang: MakeSglang | None) -> Result:
        run = Run(self.trace, self.machine, self.seed, keeps_drafter=name == SGLANG_ZERO)
        return run.play(self._policy(name, make_sglang, run))

    def play_oracle(self) -> Result:
        return play_oracle(self.trace, self.machine, self.seed)

    def _policy(self, name: str, make_sglang: MakeSglang | None, run: Run) -> Policy:
        configs = self.machine.configs
        if name == "auto":
            return Planner(self.profile, configs)
        if name == "plain":
            return Always(PLAIN)
        if name == "bandit":
            return Bandit(configs, self.seed)
        if name == "fuzz":
            return Fuzz(configs, self.seed)
        if name == "batch-table":
            return self._batch_table(run)
        if name in (SGLANG, SGLANG_ZERO) and make_sglang is not None:
            return make_sglang(configs)
        if name.startswith("always:"):
            config = SpeculationConfig.parse(name.removeprefix("always:"))
            if config not in configs:
                raise RespecError(f"{config} is not among the configurations of the simulator.")
            return Always(config)
        raise RespecError(f"There is no policy {name!r}; it is one of {', '.join(policy_names())}.")

    def _batch_table(self, run: Run) -> BatchTable:
        """Calibrated on the first requests, and told their true acceptance."""
        requests, quality = run.first_requests(), self.trace.quality_at(0.0)
        accepted = {
            config: expected_accepted(config, quality, requests) for config in self.machine.configs
        }
        return BatchTable(self.profile, accepted, TABLE_CONTEXT_TOKENS)


def contest(
    profiles: Sequence[str],
    traces: Sequence[str],
    policies: Sequence[str],
    seeds: Sequence[int],
    make_sglang: MakeSglang | None = None,
) -> Iterator[dict[str, Any]]:
    """One row per profile and trace, as soon as it is done; see :func:`_row`."""
    for profile in profiles:
        for trace in traces:
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in policies}
            oracle_switches, pure = [], {"meaning": "", "tokens": 0}
            for seed in seeds:
                match = Match.make(profile, trace, seed)
                oracle, plain = match.play_oracle(), match.play("plain", None)
                oracle_switches.append(1000 * oracle.switches / oracle.steps)
                pure = {"meaning": match.trace.meaning, "tokens": match.trace.tokens}
                for name in policies:
                    result = plain if name == "plain" else match.play(name, make_sglang)
                    runs[name].append(_figures(result, oracle, plain))
            yield {
                "profile": profile,
                "trace": trace,
                **pure,
                "seeds": list(seeds),
                "oracle_switches_per_1000": statistics.median(oracle_switches),
                "policies": {name: _spread(each) for name, each in runs.items()},
            }


def _figures(result: Result, oracle: Result, plain: Result) -> dict[str, Any]:
    decide, record = sorted(result.decide_s), sorted(result.record_s)
    return {
        "tokens_per_s": result.tokens_per_s,
        "of_oracle": result.tokens_per_s / oracle.tokens_per_s,
        "of_oracle_own_batches": result.oracle_share,
        "over_plain": result.tokens_per_s / plain.tokens_per_s,
        "worst_tenth_over_plain": result.worst_part_over_plain,
        "switches_per_1000": 1000 * result.switches / result.steps,
        "probe_share": result.probe_steps / result.steps,
        "catch_up_share": result.catch_up_s / result.seconds,
        "decide_us_median": 1e6 * decide[len(decide) // 2],
        "decide_us_p99": 1e6 * decide[int(0.99 * len(decide))],
        "record_us_median": 1e6 * record[len(record) // 2],
        "steps": result.steps,
    }


def _spread(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        key: {
            "median": statistics.median(run[key] for run in runs),
            "low": min(run[key] for run in runs),
            "high": max(run[key] for run in runs),
        }
        for key in runs[0]
    }
