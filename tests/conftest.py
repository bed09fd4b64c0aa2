"""Where there is no GPU, Triton kernels run in Triton's interpreter.

The variable must be set before anything imports triton (SGLang does), and this file is imported
before any test module. Whoever starts a real server from a test must take it out of the child's
environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

# The oracle and the cases of the tree kernels, for tests/gpu and tests/contract as well.
sys.path.append(str(Path(__file__).parent / "kernels"))
# The small profiles and records of the planner's tests, for tests/property as well.
sys.path.append(str(Path(__file__).parent / "unit"))
# A drafter of a few numbers, for tests of drafter swaps that need no SGLang.
sys.path.append(str(Path(__file__).parent / "toys"))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Under xdist, tests that share real servers run on one worker.

    xdist's own groups (3.8) are not seen by pytest 9.2, whose node ids cannot be rewritten.
    """
    return SharedServersStayTogether(config, log)


class SharedServersStayTogether(LoadScopeScheduling):
    """Hands out whole files, and the folder of tests with servers in three parts.

    Neighbours share servers; each part on a worker, which goes on with the other tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if not file.startswith("tests/integration/"):
            return file
        later = sum(file >= f"tests/integration/{first}" for first in ("test_p", "test_seen"))
        return f"servers {1 + later}"
