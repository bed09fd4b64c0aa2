"""What the HTTP process and the scheduler say to each other: about drafters, and "are you there?".

SGLang decodes its messages against a closed list of types. Importing this module adds ours, so it
must be imported in every process that decodes them: the tokenizer manager's and the scheduler's.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.io_struct import BaseReq, hook_custom_types


class DrafterReqInput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """One operation; `arguments` are numbers, texts, lists and tables of them."""

    operation: str
    arguments: dict[str, Any] = {}  # noqa: RUF012 (msgspec copies it for each struct)


class DrafterReqOutput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Its answer. `ok` is false when the scheduler refused; `body` then has one `error`."""

    ok: bool
    body: dict[str, Any]


class DrafterVerdictReqOutput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Unasked for, from rank 0: the guard found the serving drafter worse than its baseline."""

    version: int
    fallback: int


class HeartbeatReqInput(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """Answered between two steps with SGLang's own `HealthCheckOutput`, which says no more."""


hook_custom_types(DrafterReqInput, DrafterReqOutput, DrafterVerdictReqOutput, HeartbeatReqInput)
