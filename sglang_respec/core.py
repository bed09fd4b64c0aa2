"""The nouns that cross a border between packages. All frozen, none knows torch or SGLang."""

from __future__ import annotations

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
