"""Per request: how many of its steps were plain, how many were verifies and what those committed.

SGLang counts every step of a speculative server as a verify (`spec_verify_ct`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_respec.step_book import RequestSteps, StepBook

STEPS = "respec_steps"  # on SGLang's Req
PLAIN_STEPS, VERIFY_STEPS, VERIFY_TOKENS = COUNT_KEYS = (
    "respec_plain_steps",
    "respec_verify_steps",
    "respec_verify_tokens",  # committed by these verifies, before a stop cut any
)


def mark_joined(requests: Sequence[Any], book: StepBook) -> None:
    """Their prefill, or a further chunk of it, is launched."""
    for request in requests:
        request.__dict__.setdefault(STEPS, RequestSteps(book)).join()


def note_retraction(request: Any) -> None:
    """Runs before SGLang resets a request that it retracts."""
    steps = request.__dict__.get(STEPS)
    if steps is not None:
        steps.leave()


def step_counts(requests: Sequence[Any]) -> dict[str, list[int | None]]:
    """The counts of finished requests, as meta_info has them; None for the others."""
    rows = [_counts(request) for request in requests]
    return {key: [row[i] for row in rows] for i, key in enumerate(COUNT_KEYS)}


def _counts(request: Any) -> tuple[int | None, int | None, int | None]:
    steps = request.__dict__.get(STEPS)
    if steps is None or not request.finished():
        return None, None, None
    verifies = request.spec_verify_ct - steps.plain
    return steps.plain, verifies, verifies + request.spec_num_correct_drafts
