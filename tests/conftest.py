"""Where there is no GPU, Triton kernels run in Triton's interpreter.

The variable must be set before anything imports triton (SGLang does), and this file is imported
before any test module. Whoever starts a real server from a test must take it out of the child's
environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

# The oracle and the cases of the tree kernels, for tests/gpu and tests/contract as well.
sys.path.append(str(Path(__file__).parent / "kernels"))
# The small profiles and records of the planner's tests, for tests/property as well.
sys.path.append(str(Path(__file__).parent / "unit"))
# A drafter of a few numbers, for tests of drafter swaps that need no SGLang.
sys.path.append(str(Path(__file__).parent / "toys"))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist all tests with real servers run on one worker, so that they share them."""
    for item in items:
        if item.get_closest_marker("server"):
            item.add_marker(pytest.mark.xdist_group("servers"))
