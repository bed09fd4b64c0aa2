"""HiddenTap: the target's hidden states of tokens that the drafter has not seen yet.

While a request decodes plainly the drafter does not run. What it needs to come back are pairs:
at position p the target's auxiliary hidden states of token p, and token p + 1. The tap keeps
the last `window` pairs of every request in a ring, indexed by the request's slot in
`req_to_token` and by the position modulo the window.

How far a request is behind is counted on the host, where every step's advance is known without
asking the device: one token in a plain step, the extend length in a prefill.

Suffixes: N tokens, R rows of `req_to_token`, W the window, D the width of the hidden states.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]


class HiddenTap:
    """Pairs (hidden states, next token) per request slot, and each slot's gap.

    gap: [R] i64, committed tokens at the end of each request without drafter KV. May exceed
        the window; then only the last `window` of them can be rebuilt.
    """

    def __init__(
        self, rows: int, window: int, width: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.window = window
        self.gap: Ints = np.zeros(rows, dtype=np.int64)
        self._hidden = torch.zeros((rows * window, width), dtype=dtype, device=device)
        self._next_token = torch.zeros(rows * window, dtype=torch.int64, device=device)
        # Whose prefill a slot holds, and how far: a later chunk goes on, anything else is new.
        self._holder: list[tuple[Any, int] | None] = [None] * rows

    @property
    def ring_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in (self._hidden, self._next_token))

    def kept(self, slots: Ints) -> Ints:
        """[B] i64: how many tokens of each slot's gap can be rebuilt."""
        kept: Ints = np.minimum(self.gap[slots], self.window)
        return kept

    def full(self, slots: Ints) -> NDArray[np.bool_]:
        """[B] bool: slots whose next token would overwrite one the drafter still lacks."""
        full: NDArray[np.bool_] = self.gap[slots] >= self.window
        return full

    def write_step(
        self,
        slots_cpu: Ints,  # [B] i64
        slots: torch.Tensor,  # [B] i64, the same
        positions: torch.Tensor,  # [B] i64, of the tokens that were run
        hidden: torch.Tensor,  # [B, D]
        next_tokens: torch.Tensor,  # [B] i64, sampled from them
    ) -> None:
        """One plain step: every request's gap grows by the token it ran."""
        cells = slots * self.window + positions % self.window
        self._hidden.index_copy_(0, cells, hidden)
        self._next_token.index_copy_(0, cells, next_tokens)
        self.gap[slots_cpu] += 1

    def begin_prefill(self, slots: list[int], owners: list[Any], prefix_lens: list[int]) -> None:
        """Forgets what earlier requests left in these slots; later chunks keep their gap."""
        for slot, owner, prefix in zip(slots, owners, prefix_lens, strict=True):
            if self._holder[slot] != (owner, prefix):
                self.gap[slot] = 0

    def end_prefill(self, slots: list[int], owners: list[Any], ends: list[int]) -> None:
        for slot, owner, end in zip(slots, owners, ends, strict=True):
            self._holder[slot] = (owner, end)

    def write_prefill(
        self,
        slots: list[int],
        prefix_lens: list[int],
        extend_lens: list[int],
        hidden: torch.Tensor,  # [N, D], N = sum(extend_lens)
        next_tokens: torch.Tensor,  # [N] i64
    ) -> None:
        """A prefill that the drafter skipped: the last window of each request's new tokens."""
        cells: list[Ints] = []
        kept: list[Ints] = []
        start = 0
        for slot, prefix, length in zip(slots, prefix_lens, extend_lens, strict=True):
            skipped = max(0, length - self.window)
            rows = np.arange(skipped, length)
            cells.append(slot * self.window + (prefix + rows) % self.window)
            kept.append(start + rows)
            start += length
            self.gap[slot] += length
        target = torch.from_numpy(np.concatenate(cells)).to(hidden.device)
        source = torch.from_numpy(np.concatenate(kept)).to(hidden.device)
        self._hidden.index_copy_(0, target, hidden.index_select(0, source))
        self._next_token.index_copy_(0, target, next_tokens.index_select(0, source))

    def read(
        self,
        slots: Ints,  # [B] i64
        ends: Ints,  # [B] i64, committed lengths
        lens: Ints,  # [B] i64, at most `kept`
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states [N, D] and next tokens [N] of the `lens` positions before `ends`."""
        cells = np.repeat(slots, lens) * self.window + last_positions(ends, lens) % self.window
        index = torch.from_numpy(cells).to(self._hidden.device)
        return self._hidden.index_select(0, index), self._next_token.index_select(0, index)

    def mark_warm(self, slots: Ints | list[int]) -> None:
        """The drafter has KV for everything these slots have committed."""
        self.gap[slots] = 0


def last_positions(ends: Ints, lens: Ints) -> Ints:
    """[sum(lens)] i64: for each request the `lens` positions before `ends`, in order."""
    firsts: Ints = np.repeat(ends - np.cumsum(lens), lens)
    positions: Ints = firsts + np.arange(int(lens.sum()))
    return positions
