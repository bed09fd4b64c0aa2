"""Rows of one step on their way from the device to the collector.

SGLang carries them: it copies what `auxiliary_device_output` of a step's logits names to pinned
host memory beside the next step, and hands it back when the step's tokens are committed. The
commits say which tokens count, so that retracted and finished requests need no rules of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sglang_respec.hidden_tap import Ints
from sglang_respec.learner.collect import Collector, Part, StepRows
from sglang_respec.learner.collect_rollout import OpenRollout
from sglang_respec.upstream.collecting_requests import CollectedRequests

Copy = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Destination:
    """Where rows end."""

    collector: Collector
    requests: CollectedRequests


@dataclass(frozen=True)
class _Rows:
    """Of C collected requests; suffixes as in `collect`."""

    to: Destination
    rows: Ints  # [C] their rows in the batch
    slots: Ints  # [C]
    rollouts: list[OpenRollout]  # [C]
    aux: torch.Tensor  # [N, A*H]
    top: torch.Tensor  # [M, 2 K + 1] int32

    def copy_to_host(self, copy_tensor: Copy) -> Any:
        """SGLang's `DeviceAuxiliaryOutput`. The copies are read when the step's event is past."""
        parts = {**vars(self), "aux": copy_tensor(self.aux), "top": copy_tensor(self.top)}
        return type(self)(**parts)

    def hand_over(self, parts: list[Part]) -> None:
        if parts:
            self.to.collector.rows(StepRows(self.aux, self.top, parts))


@dataclass(frozen=True)
class DecodeRows(_Rows):
    """`width` rows of both kinds per request, the committed tokens' first."""

    width: int

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        """SGLang's `HostAuxiliaryOutput`."""
        parts = []
        for i, (row, rollout) in enumerate(zip(self.rows.tolist(), self.rollouts, strict=True)):
            commit = commits[row]
            if commit is None:
                continue
            index, tokens = commit.output_index, len(commit.token_ids)
            # The row that a token was drawn from holds the states of the token before it.
            position, start = rollout.prompt_tokens + index - 1, i * self.width
            parts.append(Part(rollout, start, tokens, position, start, tokens, index))
            if rollout.dropped or index + tokens >= rollout.max_generated:
                self.to.requests.forget(int(self.slots[i]), rollout)
        self.hand_over(parts)


@dataclass(frozen=True)
class PrefillRows(_Rows):
    """As many rows of hidden states as a request has new tokens, and one to draw from."""

    starts: list[int]  # [C] position of the first new token
    lens: list[int]  # [C] new tokens, as far as they are wanted

    def consume(self, batch: Any, commits: Sequence[Any]) -> None:
        """As above. The first chunks of a prompt commit nothing, and their states count."""
        parts, aux_row = [], 0
        for i, (row, rollout) in enumerate(zip(self.rows.tolist(), self.rollouts, strict=True)):
            commit, tokens = commits[row], self.lens[i]
            index = 0 if commit is None else commit.output_index
            drawn = 0 if commit is None else 1
            parts.append(Part(rollout, aux_row, tokens, self.starts[i], i, drawn, index))
            aux_row += tokens
        self.hand_over(parts)
