"""Greedy rows at temperature 1 are not divided, and a later batch is looked at anew."""

from __future__ import annotations

import sglang.srt.utils  # noqa: F401  (before its sampler: its modules import each other)
import torch

from sglang_respec.upstream.sampling.sampler import RespecSampler


def test_each_batch_is_looked_at_once() -> None:
    sampler = RespecSampler.__new__(RespecSampler)  # whose own set-up asks for a running server
    torch.nn.Module.__init__(sampler)
    ones, others = torch.ones(3, 1), torch.tensor([[1.0], [0.7]])
    for _ in range(2):
        assert sampler._other_than_1(ones) is None
        assert sampler._other_than_1(ones) is None
        for _ in range(2):
            found = sampler._other_than_1(others)
            assert found is not None
            assert found.tolist() == others.flatten().tolist()
