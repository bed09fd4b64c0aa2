"""The policy `auto` at the start of a server: a profile found or measured, shapes chosen from it.

All ranks do the same: rank 0's file, times and free memory are told to the others, and what is
decided from them is the same arithmetic everywhere.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sglang.srt.mem_cache.allocation_sizing import get_alloc_reserve_per_decode

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner import Always, Planner, Policy, Profile
from sglang_respec.planner.candidates import candidate_shapes, shapes_to_keep
from sglang_respec.planner.measured import Agenda, measure, to_profile
from sglang_respec.planner.profile import REMEDY
from sglang_respec.planner.profile_cache import (
    find_profile,
    keep_profile,
    profile_folder,
    profile_path,
)
from sglang_respec.policies import parse_configs
from sglang_respec.upstream.planning import Planning
from sglang_respec.upstream.profile_key import profile_key
from sglang_respec.upstream.profiling import Scripted, WorkerBench
from sglang_respec.upstream.rank_talk import RankTalk
from sglang_respec.upstream.runtime_states import RuntimeStates

logger = logging.getLogger(__name__)
MIB = 2**20


@dataclass(frozen=True)
class AutoStart:
    """What `auto` starts with."""

    policy: Policy
    configs: tuple[SpeculationConfig, ...]  # what it may run


class Preparation:
    """Finds or makes the profile of one worker, and holds ready what the profile chooses."""

    def __init__(self, worker: Any, states: RuntimeStates) -> None:
        self._worker, self._states = worker, states
        self._settings = worker.settings
        self._talk = RankTalk()
        self._key = profile_key(worker)
        self._candidates = candidate_shapes(states.own, parse_configs(self._settings.configs))
        on_cuda = str(worker.device).startswith("cuda")
        self._budget = self._settings.graph_memory_mib * MIB if on_cuda else None

    def run(self) -> AutoStart:
        profile = self._given() or self._saved() or self._measured()
        own = self._states.own
        if profile is None:
            self._states.keep((PLAIN, own))
            self._say(f"no step times are known, so every step runs the server's own shape, {own}.")
            return AutoStart(Always(own), (own,))
        kept = shapes_to_keep(profile, self._candidates, self._budget, self._max_batch_size)
        self._states.build((PLAIN, *kept))
        self._states.keep((PLAIN, *kept))
        if len(kept) == 1 < len(self._candidates) and self._budget is not None:
            self._say(
                f"beside plain decoding only the own shape {own} is held ready: none of the "
                f"others gains enough within graph_memory_mib = {self._settings.graph_memory_mib}."
            )
        return AutoStart(Planner(profile, kept), (PLAIN, *kept))

    def _given(self) -> Profile | None:
        """The file that the setting `profile` names; of another model it stops the server."""
        path = self._settings.profile
        if not path:
            return None
        profile = self._told(Profile.load(path) if self._talk.is_first else None)
        assert profile is not None
        profile.require(self._key, path)
        own = self._states.own
        if not profile.composes(own):
            raise RespecError(
                f"The profile {path} has no step times for the server's own shape, {own}; {REMEDY}."
            )
        self._candidates = tuple(each for each in self._candidates if profile.composes(each))
        self._say(f"step times from {path}.")
        return profile

    def _saved(self) -> Profile | None:
        profile, why_not = None, ""
        if self._talk.is_first:
            profile, why_not = find_profile(self._path, self._key, self._candidates)
        if why_not:
            logger.warning("respec: %s It is measured anew.", why_not)
        profile = self._told(profile)
        if profile is not None:
            self._say(f"step times measured at an earlier start, from {self._path}.")
        return profile

    def _measured(self) -> Profile | None:
        budget_s = self._settings.profile_seconds
        if not budget_s:
            return None
        graph_bytes = self._build_within_budget()
        agenda = self._agenda(tuple(graph_bytes))
        if not agenda.batches:
            self._say("the KV pool has no room for a batch to measure.")
            return None
        script, worker = Scripted(), self._worker
        worker.planning = Planning(script, worker.req_to_token_pool.req_to_token.shape[0])
        samples = measure(WorkerBench(worker, script, self._talk), agenda, budget_s)
        self._states.activate(self._states.own)
        own_only = {each: size for each, size in graph_bytes.items() if size}
        source = (
            f"Measured by the server itself at its start, in {samples.seconds:.1f} s of "
            f"{budget_s:g}; medians of whole rounds on batches that stand still."
        )
        profile = self._told(to_profile(samples, self._key, source, own_only))
        assert profile is not None
        sizes = profile.rounds[PLAIN].batch_sizes
        error = profile.relative_error
        self._say(
            f"measured step times of {len(agenda.configs)} configurations at batch sizes "
            f"{_span(sizes)} in {samples.seconds:.1f} s"
            + (f", {100 * error:.0f} % off at points held out" if error is not None else "")
            + f"; {self._keep(profile)}"
        )
        return profile

    def _build_within_budget(self) -> dict[SpeculationConfig, int]:
        """Bytes of graphs by candidate, measured while they are captured."""
        own, *others = self._candidates
        self._states.build((PLAIN,))
        sizes, left = {own: 0}, self._budget
        for config in others:
            if left is not None and left <= max(sizes.values()):
                break  # the next is believed to be no smaller than the largest so far
            before = self._free_bytes()
            self._states.build((config,))
            sizes[config] = max(0, before - self._free_bytes())
            left = None if left is None else left - sizes[config]
        self._candidates = tuple(sizes)
        return sizes

    def _free_bytes(self) -> int:
        if self._budget is None:
            return 0
        torch.cuda.synchronize()
        return int(self._talk.number(torch.cuda.mem_get_info()[0]))

    def _agenda(self, configs: tuple[SpeculationConfig, ...]) -> Agenda:
        runner, tap = self._worker.target_worker.model_runner, self._worker.draft_worker.tap
        return Agenda.within(
            configs,
            max_batch_size=self._max_batch_size,
            max_context_tokens=runner.req_to_token_pool.req_to_token.shape[1],
            pool_tokens=runner.token_to_kv_pool_allocator.available_size(),
            reserve_tokens=get_alloc_reserve_per_decode() + runner.page_size,
            window_tokens=0 if tap is None else tap.window,
        )

    @property
    def _max_batch_size(self) -> int:
        return int(self._worker.target_worker.model_runner.max_running_requests)

    @property
    def _path(self) -> Path:
        folder = profile_folder(self._settings.profile_dir)
        named = candidate_shapes(self._states.own, parse_configs(self._settings.configs))
        return profile_path(folder, self._key, named)

    def _told(self, profile: Profile | None) -> Profile | None:
        """Rank 0's profile, on every rank."""
        text = self._talk.text(profile.to_json() if profile is not None else "")
        return Profile.from_json(text) if text else None

    def _keep(self, profile: Profile) -> str:
        why_not = keep_profile(profile, self._path) if self._talk.is_first else ""
        return f"not saved: {why_not}" if why_not else f"saved to {self._path}."

    def _say(self, sentence: str) -> None:
        if self._talk.is_first:
            logger.info("respec: %s", sentence)


def _span(sizes: tuple[float, ...]) -> str:
    return ", ".join(f"{each:g}" for each in sizes)
