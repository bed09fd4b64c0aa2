"""The nouns that cross a border between packages. All frozen, none knows torch or SGLang."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_respec.errors import RespecError


@dataclass(frozen=True, order=True)
class SpeculationConfig:
    """The shape of one speculation round.

    The drafter runs ``num_steps`` times and keeps ``topk`` candidates at each step. The best
    ``num_draft_tokens`` nodes of that tree, the root among them, go to the target for verification.
    The root is the token the last round committed but did not yet run, so it is never a guess.
    """

    num_steps: int
    topk: int
    num_draft_tokens: int  # nodes per request in one verify pass, root included

    def __post_init__(self) -> None:
        for name in ("num_steps", "topk", "num_draft_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise RespecError(f"{name} must be an integer, got {value!r}.")
        if self.num_steps == 0:
            if (self.topk, self.num_draft_tokens) != (1, 1):
                raise RespecError(
                    f"Plain decoding is 0,1,1 and nothing else; got {self}: "
                    "use 0,1,1 or give num_steps of 1 or more."
                )
            return
        if self.num_steps < 0 or self.topk < 1:
            raise RespecError(f"num_steps and topk must be 1 or more; got {self}.")
        if self.num_draft_tokens < 2:
            raise RespecError(
                f"num_draft_tokens counts the root, so it must be 2 or more; got {self}."
            )
        if self.num_draft_tokens > self.tree_size:
            raise RespecError(
                f"{self.num_steps} steps of top-{self.topk} draft only {self.tree_size} nodes; "
                f"lower num_draft_tokens from {self.num_draft_tokens} to {self.tree_size} or less."
            )
        if self.topk == 1 and self.num_draft_tokens != self.tree_size:
            raise RespecError(
                f"A chain (topk 1) verifies every node it drafts; set num_draft_tokens to "
                f"num_steps + 1 = {self.tree_size}, not {self.num_draft_tokens}."
            )

    @property
    def tree_size(self) -> int:
        """Nodes drafted in one round, root included: the first step fans out from the root."""
        if self.num_steps == 0:
            return 1
        return 1 + self.topk + (self.num_steps - 1) * self.topk * self.topk

    @property
    def is_plain(self) -> bool:
        return self.num_steps == 0

    @classmethod
    def parse(cls, text: str) -> SpeculationConfig:
        """Read ``"steps,topk,draft_tokens"``, for example ``"5,1,6"``, or ``"plain"``."""
        if text.strip().lower() == "plain":
            return PLAIN
        parts = text.split(",")
        try:
            numbers = [int(part) for part in parts]
        except ValueError:
            numbers = []
        if len(numbers) != 3:
            raise RespecError(
                f"A speculation config reads 'steps,topk,draft_tokens', for example '5,1,6', "
                f"or 'plain'; got {text!r}."
            )
        return cls(*numbers)

    def __str__(self) -> str:
        return f"{self.num_steps},{self.topk},{self.num_draft_tokens}"


PLAIN = SpeculationConfig(num_steps=0, topk=1, num_draft_tokens=1)
"""Plain decoding: the drafter does not run and the target decodes one token."""

TEMPERATURE_CLASSES = ("greedy", "low", "high")
LOW_TEMPERATURE_LIMIT = 0.8


def temperature_class(temperature: float) -> int:
    """Index into ``TEMPERATURE_CLASSES``: 0, up to 0.8, above. Acceptance is kept per class."""
    if temperature <= 0.0:
        return 0
    return 1 if temperature <= LOW_TEMPERATURE_LIMIT else 2


@dataclass(frozen=True)
class BatchStats:
    """What a policy is told of the next decode batch. Every field must be equal on all ranks."""

    batch_size: int  # requests, 1 or more
    mean_context_tokens: float  # committed tokens per request, prompt included
    requests_per_class: tuple[int, int, int]  # by TEMPERATURE_CLASSES; sums to batch_size
    gap_tokens: int = 0  # what a catch-up would run now, all requests together, window applied


@dataclass(frozen=True)
class Plan:
    """What the next round runs."""

    config: SpeculationConfig
    reason: str  # one of PLAN_REASONS; a label for metrics
    probe_tokens: int = 0  # only with PLAIN: of so many requests the drafter guesses the token
    predicted_s: float | None = None  # of the round, where the policy knows step times


PLAN_REASONS = {
    "first": "the first rounds are plain, to measure what must not be undercut",
    "best": "commits most tokens per second",
    "hold": "another is ahead by no more than the estimate's own error or the cost of changing",
    "probe": "a short look at a configuration that may be better than believed",
    "fixed": "the policy always runs this",
    "rule": "the policy's own rule",
    "fuzz": "drawn at random, for tests",
}


@dataclass(frozen=True)
class RankCounts:
    """How often the target's token had each rank among the drafter's candidates at one depth.

    Depth 1 is the drafter's first guess. Only nodes the target really reached are counted, each
    once per round, and only where the drafter had drafted candidates.
    """

    temperature_class: int
    depth: int  # 1 or more
    first_ranks: bool  # the path so far took the drafter's first candidate at every depth
    hits: tuple[int, ...]  # [K]; hits[r - 1] = times the token was candidate r
    misses: int  # times it was none of the K

    @staticmethod
    def from_table(table: Sequence[Sequence[Sequence[Sequence[int]]]]) -> tuple[RankCounts, ...]:
        """Read ``table[class][depth - 1][path][column]``; rows of zeros are left out.

        path 0 is off the first candidates, path 1 on them. Columns 0..K-1 count ranks 1..K, the
        last column counts misses: one bincount of the round, copied to the host.
        """
        return tuple(
            RankCounts(which, depth, bool(path), tuple(row[:-1]), row[-1])
            for which, depths in enumerate(table)
            for depth, paths in enumerate(depths, start=1)
            for path, row in enumerate(paths)
            if any(row)
        )


@dataclass(frozen=True)
class StepRecord:
    """What one decode round did. Every field must be equal on all ranks, the times included."""

    config: SpeculationConfig
    batch_size: int
    mean_context_tokens: float
    requests_per_class: tuple[int, int, int]
    tokens_committed: int  # all requests, bonus tokens included, before stops cut any
    seconds: float | None = None  # rank 0's, without catch-up and probe; None where unmeasured
    ranks: tuple[RankCounts, ...] = ()  # of the round, or of its probe
