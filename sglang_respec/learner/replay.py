"""The replay buffer: recent rollouts, some of whose prompts are kept apart to judge drafters.

Collection adds while training draws: one lock around the bookkeeping, and tensors that nobody
writes to. A rollout leaves when it is too old, by policy versions or by the clock, or when newer
ones need its room. Held out is decided by the prompt, so that no prompt is on both sides even
where a trainer samples it many times.
"""

import random
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_respec.learner.batches import Window, windows
from sglang_respec.learner.rewards import Reward, Rewarded
from sglang_respec.learner.sample_weights import Facts, WeightRule
from sglang_respec.learner.samples import RolloutSample


@dataclass(frozen=True)
class ReplayLimits:
    train_tokens: int  # of all rollouts to learn from
    held_out_tokens: int  # of all rollouts to judge with
    max_policy_age: int  # policy versions behind the newest seen
    max_age_s: float  # since arrival
    held_out_share: int  # one prompt in so many is held out


@dataclass(frozen=True)
class _Entry:
    sample: RolloutSample
    reward: Reward | None
    arrived: float


class ReplayBuffer:
    """Every method may be called from any thread; ``now`` is a monotonic clock in seconds."""

    def __init__(self, limits: ReplayLimits) -> None:
        self._limits = limits
        self._train: OrderedDict[str, _Entry] = OrderedDict()
        self._held_out: OrderedDict[str, _Entry] = OrderedDict()
        self._policy_version = 0
        self._counts: Counter[str] = Counter()
        self._arrived_tokens = 0
        self._lock = threading.Lock()

    def add(self, rollouts: Sequence[Rewarded], now: float) -> None:
        with self._lock:
            for each in rollouts:
                sample = each.sample
                side = self._held_out if self.is_held_out(sample) else self._train
                side[sample.request_id] = _Entry(sample, each.reward, now)
                self._policy_version = max(self._policy_version, sample.policy_version)
                if side is self._train:
                    self._arrived_tokens += sample.generated_tokens
            self._drop(now)

    def reward(self, rewards: Sequence[Reward]) -> None:
        """Late rewards, or better ones, for rollouts that are here."""
        with self._lock:
            for each in rewards:
                for side in (self._train, self._held_out):
                    if (entry := side.get(each.request_id)) is not None:
                        side[each.request_id] = _Entry(entry.sample, each, entry.arrived)
                        self._counts["rewarded_late"] += 1

    def drop_old(self, now: float) -> None:
        with self._lock:
            self._drop(now)

    def draw(
        self,
        rng: random.Random,
        *,
        batch_tokens: int,
        window: int,
        rule: WeightRule,
        clip: float,
    ) -> list[Window]:
        """Random windows whose padded batch holds at most ``batch_tokens`` (one at the least)."""
        with self._lock:
            entries = list(self._train.values())
        facts = [Facts(each.sample.generated_tokens, each.reward) for each in entries]
        weights = rule(facts, clip).tolist()
        order = rng.sample(range(len(entries)), len(entries))
        drawn: list[Window] = []
        longest = 0
        for index in order:
            parts = list(windows(entries[index].sample, window, weights[index]))
            part = rng.choice(parts)
            longest = max(longest, len(part))
            if drawn and longest * (len(drawn) + 1) > batch_tokens:
                break
            drawn.append(part)
        return drawn

    def held_out(self) -> list[RolloutSample]:
        """The rollouts to judge with, oldest first."""
        with self._lock:
            return [entry.sample for entry in self._held_out.values()]

    @property
    def arrived_tokens(self) -> int:
        """Generated tokens that came to learn from since the start."""
        with self._lock:
            return self._arrived_tokens

    def counters(self) -> dict[str, int]:
        with self._lock:
            return {
                **self._counts,
                "train_rollouts": len(self._train),
                "train_tokens": _tokens(self._train),
                "held_out_rollouts": len(self._held_out),
                "held_out_tokens": _tokens(self._held_out),
                "policy_version": self._policy_version,
            }

    def is_held_out(self, sample: RolloutSample) -> bool:
        prompt = sample.tokens[: sample.prompt_tokens].numpy().tobytes()
        return zlib.crc32(prompt) % self._limits.held_out_share == 0

    def _drop(self, now: float) -> None:
        oldest = self._policy_version - self._limits.max_policy_age
        for side, budget in (
            (self._train, self._limits.train_tokens),
            (self._held_out, self._limits.held_out_tokens),
        ):
            for request_id, entry in list(side.items()):
                aged = now - entry.arrived > self._limits.max_age_s
                if aged or entry.sample.policy_version < oldest:
                    del side[request_id]
                    self._counts["dropped_by_clock" if aged else "dropped_by_policy"] += 1
            excess = _tokens(side) - budget
            while excess > 0 and len(side) > 1:
                _, entry = side.popitem(last=False)
                excess -= len(entry.sample.tokens)
                self._counts["dropped_by_room"] += 1


def _tokens(side: OrderedDict[str, _Entry]) -> int:
    return sum(len(entry.sample.tokens) for entry in side.values())
