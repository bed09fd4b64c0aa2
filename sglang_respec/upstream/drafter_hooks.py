"""The replacements behind drafter swaps and protected policy pushes; part of `hooks.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from sglang_respec.upstream.hook_table import Hook

HERE = "sglang_respec.upstream"


def _guarded_update(path: str) -> Callable[..., Any]:
    from sglang_respec.upstream.policy_pushes import guarded_update

    return guarded_update(path)


_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"

DRAFTER_HOOKS = (
    Hook(
        name="drafter-handler",
        target="sglang.srt.managers.scheduler.Scheduler.init_request_dispatcher",
        kind="after",
        replacement=f"{HERE}.drafter_control:attach_to_scheduler",
        symptom="a drafter cannot be changed while requests run",
        cause="SGLang's weight updates wait until none runs, and can leave a part written",
        remove_when="SGLang stages and commits a drafter's weights between two steps",
    ),
    Hook(
        name="drafter-routes",
        target=(
            "sglang.srt.managers.tokenizer_control_mixin.TokenizerControlMixin.init_communicators"
        ),
        kind="after",
        replacement=f"{HERE}.routes:attach_to_tokenizer",
        symptom="there is no POST /update_drafter, and /health takes seconds (see health.py)",
        cause="SGLang has no seam for routes or messages of a plugin",
        remove_when="it has one",
    ),
    Hook(
        name="drafter-spans",
        target="sglang.srt.managers.scheduler.Scheduler.get_output_streamer_class",
        kind="after",
        replacement=f"{HERE}.drafter_control:streamer_with_spans",
        symptom="a response does not say which drafter versions served it",
        cause="SGLang chooses the class in a method of its scheduler",
        remove_when="SGLang's weight versions have one for the drafter",
    ),
    Hook(
        name="drafter-spans-whole",
        target=(
            "sglang.srt.managers.tokenizer_manager.TokenizerManager._accumulate_request_meta_info"
        ),
        kind="around",
        replacement=f"{HERE}.drafter_spans:put_spans",
        symptom="an incremental stream loses the spans",
        cause="SGLang cuts every list in meta_info at the stream's offset",
        remove_when="it cuts only what it has per token",
    ),
    Hook(
        name="policy-runners",
        target=f"{_UPDATER}._select_runners",
        kind="around",
        replacement=f"{HERE}.policy_pushes:select_runners",
        symptom="after a policy push nothing that the drafter drafts is accepted",
        cause="the push lands in the drafter too, whose parameters have the target's names",
        remove_when="SGLang updates the target alone unless told otherwise",
    ),
    Hook(
        name="policy-session",
        target=f"{_UPDATER}.begin_weight_update",
        kind="around",
        replacement=f"{HERE}.policy_pushes:begin_session",
        symptom="as policy-runners",
        cause="a session for all ends by processing the drafter's weights again",
        remove_when="as policy-runners",
    ),
    *(
        Hook(
            name=f"policy-{path}",
            target=f"{_UPDATER}.update_weights_from_{path}",
            kind="around",
            replacement=partial(_guarded_update, path),
            symptom="a bad policy push ends the server",
            cause="what decoding or loading raises leaves the scheduler's loop",
            remove_when="SGLang answers it, on every tensor-parallel rank",
        )
        for path in ("disk", "distributed", "tensor", "ipc")
    ),
)
