"""Releasing a server's memory to a trainer, on a machine with no GPU."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch


def release_on_a_cpu(original: Callable[[Any, Any], Any], manager: Any, request: Any) -> Any:
    """Around `release_memory_occupation`, which waits for the device that torch was built for."""
    with patch.object(torch, "get_device_module", _cpu_unless_named(torch.get_device_module)):
        return original(manager, request)


def _cpu_unless_named(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda device=None: torch.cpu if device is None else original(device)
