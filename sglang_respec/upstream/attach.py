"""What our part of the scheduler listens to, besides SGLang's own messages."""

from __future__ import annotations

from typing import Any

from sglang_respec.upstream.drafter_control import attach_drafter_control
from sglang_respec.upstream.plan_view import attach_plan_view


def attach_to_scheduler(_: None, scheduler: Any) -> None:
    """Runs after SGLang has made its dispatcher, when the workers are ready."""
    attach_drafter_control(scheduler)
    attach_plan_view(scheduler)
