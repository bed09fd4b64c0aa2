"""Both implementations of each kernel, as fixtures."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from respec_kernels import implementation
from respec_kernels.triton.tuning import Tuning


@pytest.fixture(scope="session", params=["reference", "triton"])
def kernel(request: pytest.FixtureRequest) -> Callable[[str], Callable[..., Any]]:
    """Return ``kernel(name)``: the function of that name, in one implementation after the other."""
    on_gpu = request.param == "triton"
    if on_gpu and not torch.cuda.is_available():
        assert os.environ["TRITON_INTERPRET"] == "1"
    return lambda name: implementation(name, on_gpu)


@pytest.fixture(params=["reference", "whole rows", "split rows"])
def sampler(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Callable[..., Any]]:
    """Like ``kernel``, for the row kernels; Triton with small blocks, rows whole and split."""
    if request.param == "reference":
        return lambda name: implementation(name, False)
    tuning = {
        "whole rows": Tuning(block=64, splits=1, warps=1),
        "split rows": Tuning(block=32, splits=2, warps=1, inspections=1),
    }[request.param]
    for name in ("sample_rows", "draft_topk"):
        monkeypatch.setattr(f"respec_kernels.triton.{name}.tuning_for", lambda *_: tuning)
    return lambda name: implementation(name, True)


@pytest.fixture(params=["reference", "triton"])
def verifier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """verify_sampled_tree; how Triton cuts rows is for the tests of ``sample_rows``."""
    whole = Tuning(block=64, splits=1, warps=1)
    monkeypatch.setattr("respec_kernels.triton.sample_rows.tuning_for", lambda *_: whole)
    return implementation("verify_sampled_tree", request.param == "triton")
