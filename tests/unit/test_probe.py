"""Guesses of the drafter at tokens that a plain step samples."""

from __future__ import annotations

import numpy as np
import torch

from sglang_respec.core import RankCounts
from sglang_respec.draft_ranks import tree_ranks
from sglang_respec.upstream.probe import Guesses, probed_rows


def test_those_least_behind_are_asked():
    gaps = np.array([9, 0, 3, 7, 3])
    assert probed_rows(gaps, 3).tolist() == [1, 2, 4]
    assert probed_rows(gaps, 99).tolist() == [0, 1, 2, 3, 4]


def test_where_the_token_stood():
    candidates = torch.tensor([[5, 6, 7], [1, 2, 3], [5, 6, 7], [9, 8, 7], [4, 4, 4]])
    rows = np.array([0, 1, 3, 4])
    tokens = torch.tensor([5, 3, 0, 7, 9])
    classes = np.array([0, 1, 0, 0, 1])
    counts = Guesses.of(rows, candidates).ranks(tokens, classes)
    assert set(tree_ranks(counts)) == {
        RankCounts(0, 1, True, (1, 0, 1), 0),  # rows 0 and 3
        RankCounts(1, 1, True, (0, 0, 1), 1),  # rows 1 and 4
    }


def test_a_chain_has_one_candidate():
    guesses = Guesses.of(np.array([0, 1]), torch.tensor([[5], [6]]))
    (counts,) = tree_ranks(guesses.ranks(torch.tensor([5, 5]), np.array([2, 2])))
    assert counts == RankCounts(2, 1, True, (1,), 1)
