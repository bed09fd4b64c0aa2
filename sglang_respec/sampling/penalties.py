"""Penalties on tokens a request has generated already, exact in plain and tree decoding.

SGLang adds one token per step to its penalties, so a speculative step that commits several
loses all but the last, and a retracted request starts over. Here a table on the device counts
the output tokens of every request slot, and each sampled row adds its own path in the tree:

    count(v)  = times v was generated  +  times v lies on the path to this node
    z(v)     -= frequency * count(v) + presence * [count(v) > 0]
    z(v)      = z(v) / repetition if z(v) > 0 else z(v) * repetition,  where count(v) > 0
    z(stop)   = -inf while fewer than min_new_tokens were generated

(the rules and their order of `sglang.srt.sampling.penaltylib`). Slots: a request's index in
SGLang's request pool. Everything below runs on the stream of the forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PenaltyParameters:
    """What one request asks for; the defaults ask for nothing."""

    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] = ()  # what ends the request, held back by min_new_tokens

    @property
    def asks_for_nothing(self) -> bool:
        return (self.frequency, self.presence, self.repetition, self.min_new_tokens) == (
            0.0,
            0.0,
            1.0,
            0,
        )


class PenaltyTable:
    """Counts and parameters of every request slot. Memory is taken at the first admission:
    four bytes per slot and vocabulary entry."""

    def __init__(self, slots: int, vocab_size: int, device: torch.device | str) -> None:
        self._slots, self._vocab_size, self._device = slots, vocab_size, device
        self._counts: torch.Tensor | None = None  # [slots, V] i32

    @property
    def in_use(self) -> bool:
        """Whether any request so far asked for a penalty."""
        return self._counts is not None

    def admit(
        self,
        slots: torch.Tensor,  # [M] i64
        parameters: Sequence[PenaltyParameters],
        generated: Sequence[Sequence[int]],
    ) -> None:
        """Start these slots anew: their parameters, and the tokens generated before now.

        A request that was retracted comes back with what it had generated.
        """
        self._allocate(max(len(each.stop_ids) for each in parameters))
        lengths = [len(tokens) for tokens in generated]
        self._counts[slots] = 0  # type: ignore[index]
        self._outputs[slots] = torch.tensor(lengths, device=self._device, dtype=torch.int32)
        flat = torch.tensor([token for tokens in generated for token in tokens], dtype=torch.int64)
        repeats = torch.tensor(lengths, device=self._device)
        self._add(slots.repeat_interleave(repeats), flat.to(self._device))
        numbers = [(each.frequency, each.presence, each.repetition) for each in parameters]
        self._factors[slots] = torch.tensor(numbers, dtype=torch.float32, device=self._device)
        least = [each.min_new_tokens for each in parameters]
        self._least[slots] = torch.tensor(least, dtype=torch.int32, device=self._device)
        width = self._stop_ids.shape[1]
        stops = [
            [*each.stop_ids, *[self._vocab_size] * (width - len(each.stop_ids))]
            for each in parameters
        ]
        self._stop_ids[slots] = torch.tensor(stops, dtype=torch.int64, device=self._device).view(
            -1, width
        )

    def count(
        self,
        slots: torch.Tensor,  # [B] i64
        tokens: torch.Tensor,  # [B, D] integer; negative entries are no tokens
    ) -> None:
        """Tokens committed by this step. Costs nothing before the first admission."""
        if self._counts is None:
            return
        self._outputs[slots] += (tokens >= 0).sum(1, dtype=torch.int32)
        self._add(slots[:, None].expand_as(tokens).flatten(), tokens.flatten())

    def penalise(
        self,
        logits: torch.Tensor,  # [R, V], written
        slots: torch.Tensor,  # [R] i64
        paths: torch.Tensor | None = None,  # [R, D] i64 tokens on the way to the row's node, or -1
    ) -> None:
        """Apply every row's penalties in place; rows that ask for nothing keep their logits."""
        if self._counts is None:
            return
        counts, outputs = self._counts[slots], self._outputs[slots]
        if paths is not None and paths.shape[1]:
            there = (paths >= 0).to(counts.dtype)
            counts.scatter_add_(1, paths.clamp(min=0), there)
            outputs = outputs + there.sum(1, dtype=outputs.dtype)
        frequency, presence, repetition = self._factors[slots].unbind(1)
        seen = counts > 0
        logits -= frequency[:, None] * counts + presence[:, None] * seen
        self._hold_back_stops(logits, slots, outputs)
        factor = torch.where(seen, repetition[:, None], 1.0)
        logits.copy_(torch.where(logits > 0, logits / factor, logits * factor))

    def _hold_back_stops(
        self, logits: torch.Tensor, slots: torch.Tensor, outputs: torch.Tensor
    ) -> None:
        early = (outputs < self._least[slots])[:, None]
        stops = self._stop_ids[slots]
        held = logits.new_zeros((logits.shape[0], self._vocab_size + 1), dtype=torch.bool)
        held.scatter_(1, stops, early.expand_as(stops))
        logits.masked_fill_(held[:, : self._vocab_size], float("-inf"))

    def _add(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        at = slots * self._vocab_size + tokens.clamp(min=0)
        there = (tokens >= 0).to(torch.int32)
        self._counts.view(-1).index_add_(0, at, there)  # type: ignore[union-attr]

    def _allocate(self, stop_ids: int) -> None:
        if self._counts is None:
            zeros = {"device": self._device}
            self._counts = torch.zeros((self._slots, self._vocab_size), dtype=torch.int32, **zeros)
            self._outputs = torch.zeros(self._slots, dtype=torch.int32, **zeros)
            self._least = torch.zeros(self._slots, dtype=torch.int32, **zeros)
            self._factors = torch.tensor([0.0, 0.0, 1.0], **zeros).repeat(self._slots, 1)
            self._stop_ids = torch.full((self._slots, 1), self._vocab_size, **zeros)
        missing = stop_ids - self._stop_ids.shape[1]
        if missing > 0:
            self._stop_ids = torch.nn.functional.pad(
                self._stop_ids, (0, missing), value=self._vocab_size
            )
