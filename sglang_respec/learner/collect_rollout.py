"""One rollout under way, put together from the parts that each step of the server leaves.

Every part says which tokens it is of, so that parts may come twice (a request that was retracted
computes its tokens again; the later part counts) and a missing one is seen at the end.
Legend as in :mod:`.samples`; W bytes of one token's hidden states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from sglang_respec.learner.collect_top import unpack_top
from sglang_respec.learner.samples import RolloutSample

Bytes: TypeAlias = NDArray[np.uint8]
Packed: TypeAlias = NDArray[np.int32]

FIRST_ROOM = 256  # tokens; doubled as often as needed


@dataclass(frozen=True)
class RowFormat:
    """What the rows of one server look like."""

    aux_dtype: torch.dtype
    aux_width: int  # numbers per token, A*H
    listed: int  # K

    @property
    def aux_bytes(self) -> int:
        return self.aux_width * torch.empty((), dtype=self.aux_dtype).element_size()

    @property
    def packed_width(self) -> int:
        return 2 * self.listed + 1

    @property
    def bytes_per_token(self) -> int:
        return self.aux_bytes + 4 * self.packed_width


@dataclass(frozen=True)
class Finish:
    """What is known when a request has ended."""

    tokens: Sequence[int]  # prompt and answer
    drafter_version: int
    policy_version: int


class _Rows:
    """Rows of one kind by index, and which of them are there."""

    def __init__(self, width: int, dtype: Any, room: int, limit: int) -> None:
        self.limit = limit
        room = min(room, limit)
        self.values: NDArray[Any] = np.empty((room, width), dtype=dtype)
        self.there: NDArray[np.bool_] = np.zeros(room, dtype=np.bool_)

    def put(self, start: int, block: NDArray[Any]) -> None:
        end = min(start + len(block), self.limit)
        if end <= start:
            return
        if end > len(self.values):
            self._grow(end)
        self.values[start:end] = block[: end - start]
        self.there[start:end] = True

    def _grow(self, needed: int) -> None:
        room = min(self.limit, max(needed, 2 * len(self.values)))
        values = np.empty((room, self.values.shape[1]), dtype=self.values.dtype)
        values[: len(self.values)] = self.values
        self.values = values
        self.there = np.concatenate([self.there, np.zeros(room - len(self.there), np.bool_)])

    def first_of_the_last_run(self, end: int) -> int:
        """From where on all rows up to `end` are there; `end` if the last is missing."""
        if end > len(self.there):
            return end
        gaps = np.flatnonzero(~self.there[:end])
        return int(gaps[-1]) + 1 if gaps.size else 0


class OpenRollout:
    """The parts of one request that came so far. Written by one thread."""

    def __init__(
        self,
        request_id: str,
        prompt_tokens: int,  # P, less than max_tokens
        seed: int,
        temperature: float,  # 0 is greedy
        rows: RowFormat,
        max_tokens: int,
    ) -> None:
        self.request_id, self.prompt_tokens = request_id, prompt_tokens
        self.max_tokens = max_tokens
        self.serial = -1  # given when it is opened, by the thread that writes
        self.dropped = False  # to make room; what still comes is not kept
        self._seed, self._temperature, self._rows = seed, temperature, rows
        room = prompt_tokens + FIRST_ROOM
        self._aux = _Rows(rows.aux_bytes, np.uint8, room, max_tokens - 1)
        self._top = _Rows(rows.packed_width, np.int32, FIRST_ROOM, max_tokens - prompt_tokens)

    @property
    def max_generated(self) -> int:
        return self.max_tokens - self.prompt_tokens

    @property
    def nbytes(self) -> int:
        return self._aux.values.nbytes + self._top.values.nbytes

    def put_aux(self, position: int, block: Bytes) -> None:  # [n, W] of tokens from position on
        self._aux.put(position, block)

    def put_top(self, index: int, block: Packed) -> None:  # [n, 2 K + 1] from generated token on
        self._top.put(index, block)

    def finish(self, end: Finish) -> RolloutSample | None:
        """The rollout, cut to `max_tokens`; None where a part is missing."""
        tokens = torch.tensor(end.tokens[: self.max_tokens], dtype=torch.int32)
        generated, run = len(tokens) - self.prompt_tokens, len(tokens) - 1
        first = self._aux.first_of_the_last_run(run)
        if generated < 1 or first >= self.prompt_tokens:
            return None
        if self._top.first_of_the_last_run(generated) != 0:
            return None
        aux = torch.from_numpy(self._aux.values[first:run].copy()).view(self._rows.aux_dtype)
        ids, logprobs, tail = unpack_top(torch.from_numpy(self._top.values[:generated]))
        return RolloutSample(
            request_id=self.request_id,
            prompt_tokens=self.prompt_tokens,
            tokens=tokens,
            first_aux=first,
            aux=aux,
            top_ids=ids,
            top_logprobs=logprobs,
            tail_mass=tail,
            seed=self._seed,
            temperature=self._temperature,
            drafter_version=end.drafter_version,
            policy_version=end.policy_version,
        )
