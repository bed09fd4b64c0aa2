"""A probe while decoding plainly: would the drafter have had the token that the target sampled?

The drafter catches up for some requests, which yields its candidates for their next token; the
plain step samples that token as ever; where it stood among the candidates is one observation per
request. The token does not depend on any of it.
"""

from dataclasses import dataclass

import numpy as np
import torch

from sglang_respec.core import TEMPERATURE_CLASSES
from sglang_respec.hidden_tap import Ints


def probed_rows(gaps: Ints, most: int) -> Ints:
    """[r] i64: at most so many rows, those whose drafter is least behind, in order."""
    nearest: Ints = np.argsort(gaps, kind="stable")[:most]
    return np.sort(nearest)


@dataclass(frozen=True)
class Guesses:
    """The drafter's candidates for the next token of some rows of a batch."""

    rows: Ints  # [r] i64
    candidates: torch.Tensor  # [r, K] i64, tokens of the target, the likeliest first

    @classmethod
    def of(cls, rows: Ints, topk_index: torch.Tensor) -> "Guesses":
        """topk_index: [B, K] i64, tokens of the target."""
        return cls(rows, topk_index.index_select(0, torch.from_numpy(rows).to(topk_index.device)))

    def ranks(self, tokens: torch.Tensor, classes: Ints) -> torch.Tensor:
        """Counts as `count_tree_ranks` gives them, for one depth on first candidates.

        tokens: [B] i64, what was sampled. classes: [B] i64 of the batch.
        """
        device, topk = tokens.device, self.candidates.shape[1]
        drawn = tokens.index_select(0, torch.from_numpy(self.rows).to(device))
        hits = self.candidates == drawn[:, None]
        column = torch.where(hits.any(1), hits.int().argmax(1), topk)
        which = torch.from_numpy(classes[self.rows]).to(device)
        cell = which * (topk + 1) + column
        counts = torch.zeros(
            len(TEMPERATURE_CLASSES) * (topk + 1), dtype=torch.int64, device=device
        )
        counts.scatter_add_(0, cell, torch.ones_like(cell))
        table = counts.new_zeros((len(TEMPERATURE_CLASSES), 1, 2, topk, topk + 1))
        table[:, 0, 1, topk - 1] = counts.view(-1, topk + 1)
        return table
