"""Both implementations of each kernel, as fixtures."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from respec_kernels import implementation


@pytest.fixture(scope="session", params=["reference", "triton"])
def kernel(request: pytest.FixtureRequest) -> Callable[[str], Callable[..., Any]]:
    """Return ``kernel(name)``: the function of that name, in one implementation after the other."""
    on_gpu = request.param == "triton"
    if on_gpu and not torch.cuda.is_available():
        assert os.environ["TRITON_INTERPRET"] == "1"
    return lambda name: implementation(name, on_gpu)
