"""The replacement behind per-request counts of plain steps; part of `hooks.py`."""

from sglang_respec.upstream.hook_table import Hook

STEP_HOOKS = (
    Hook(
        name="step-counts-retraction",
        target="sglang.srt.managers.schedule_batch.Req.reset_for_retract",
        kind="before",
        replacement="sglang_respec.upstream.step_counts:note_retraction",
        symptom="a request that was retracted counts the plain steps it had no part in",
        cause="SGLang tells its worker of prefills and steps, and not of retractions",
        remove_when="SGLang counts plain steps of a speculative server itself",
    ),
)
