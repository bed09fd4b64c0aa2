"""What the HTTP process asks the scheduler about its steps, as `drafter_ipc` does for drafters."""

from __future__ import annotations

from typing import Any, Literal

from sglang.srt.managers.io_struct import BaseReq, hook_custom_types

Question = Literal["plan", "state"]


class PlanReqInput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    question: Question


class PlanReqOutput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Its answer. `ok` is false where there is none; `body` then has one `error`."""

    ok: bool
    body: dict[str, Any]


hook_custom_types(PlanReqInput, PlanReqOutput)
