"""Rewards find their rollouts by request id, whichever of the two comes first.

| what happens | what becomes of it |
|---|---|
| the rollout comes first | it waits up to ``window_s``, then goes on as ``missing`` says |
| the reward comes first | it waits up to ``window_s`` (and among the newest MAX_EARLY) |
| the same reward again | ignored, counted: posting twice is safe |
| another reward while the rollout waits or is still in the buffer | the newest counts |
| a reward after the window | it reaches the rollout if that is still in the buffer |
| a reward for a rollout that was never sampled, or is gone | expires, counted |
| a rollout of an id that was seen already | left out, counted: a chunk may come twice |
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sglang_respec.errors import RespecError

if TYPE_CHECKING:  # a door for rewards needs no torch
    from sglang_respec.learner.samples import RolloutSample

Missing = Literal["one", "drop"]
MAX_EARLY = 65536  # rewards kept for rollouts that have not come
MAX_SEEN = 65536  # request ids remembered


@dataclass(frozen=True)
class Reward:
    """What a trainer says about one rollout."""

    request_id: str
    reward: float
    advantage: float | None = None  # the trainer's own; else from the rewards of the group
    group: str = ""  # rollouts of one prompt, as in GRPO

    def __post_init__(self) -> None:
        numbers = [self.reward, *([] if self.advantage is None else [self.advantage])]
        if not all(math.isfinite(number) for number in numbers):
            raise RespecError(f"The reward of {self.request_id!r} is not finite; leave it out.")


@dataclass(frozen=True)
class Rewarded:
    """A rollout on its way into the buffer. ``reward`` is None where none came in time."""

    sample: RolloutSample
    reward: Reward | None


class RewardBook:
    """Pairs rollouts with rewards. Every method may be called from any thread; ``now`` is a
    monotonic clock in seconds."""

    def __init__(self, window_s: float, missing: Missing) -> None:
        """window_s 0: rewards that are not there yet are not waited for."""
        self._window_s, self._missing = window_s, missing
        self._waiting: OrderedDict[str, tuple[RolloutSample, float]] = OrderedDict()
        self._early: OrderedDict[str, tuple[Reward, float]] = OrderedDict()
        self._known: OrderedDict[str, Reward | None] = OrderedDict()  # released rollouts
        self._late: list[Reward] = []
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def post(self, rewards: Sequence[Reward], now: float) -> None:
        with self._lock:
            for each in rewards:
                self._post(each, now)
            while len(self._early) > MAX_EARLY:
                self._early.popitem(last=False)
                self._counts["expired"] += 1

    def add(self, samples: Sequence[RolloutSample], now: float) -> None:
        with self._lock:
            for sample in samples:
                if sample.request_id in self._waiting or sample.request_id in self._known:
                    self._counts["repeated_rollouts"] += 1
                else:
                    self._waiting[sample.request_id] = (sample, now)

    def release(self, now: float) -> list[Rewarded]:
        """Rollouts that have their reward or have waited long enough, in order of arrival."""
        ready: list[Rewarded] = []
        with self._lock:
            for request_id, (sample, since) in list(self._waiting.items()):
                found = self._early.pop(request_id, None)
                if found is None and now - since < self._window_s:
                    continue
                del self._waiting[request_id]
                reward = found[0] if found else None
                self._remember(request_id, reward)
                self._counts["matched" if found else "missing"] += 1
                if found or self._missing == "one":
                    ready.append(Rewarded(sample, reward))
            self._expire(now)
        return ready

    def take_late(self) -> list[Reward]:
        """Rewards for rollouts that were released already: new ones, or changed ones."""
        with self._lock:
            late, self._late = self._late, []
            return late

    def counters(self) -> dict[str, int]:
        with self._lock:
            waiting = {"waiting": len(self._waiting), "early": len(self._early)}
            return {**self._counts, **waiting}

    def _post(self, reward: Reward, now: float) -> None:
        known = self._known.get(reward.request_id)
        early = self._early.get(reward.request_id)
        if reward in (known, early[0] if early else None):
            self._counts["repeated"] += 1
        elif reward.request_id in self._known:
            self._counts["late"] += 1
            self._known[reward.request_id] = reward
            self._late.append(reward)
        else:
            self._early[reward.request_id] = (reward, now)
            self._early.move_to_end(reward.request_id)

    def _remember(self, request_id: str, reward: Reward | None) -> None:
        self._known[request_id] = reward
        while len(self._known) > MAX_SEEN:
            self._known.popitem(last=False)

    def _expire(self, now: float) -> None:
        waiting = self._waiting
        for request_id, (_, since) in list(self._early.items()):
            if now - since < self._window_s:
                break
            if request_id not in waiting:
                del self._early[request_id]
                self._counts["expired"] += 1
