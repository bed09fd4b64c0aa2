"""The names of SGLang behind what is seen of steps from outside; part of `contract.py`."""

from sglang_respec.upstream.contract_table import UpstreamName

_BATCH = "sglang.srt.managers.schedule_batch"
_WORKER = "sglang.srt.speculative.eagle_worker_v2"

STEP_NAMES = (
    UpstreamName(_BATCH, "Req.reset_for_retract", ("self",), "ends a stretch of counted steps"),
    UpstreamName(_BATCH, "Req.spec_verify_ct", None, "all steps of a request, the plain ones too"),
    UpstreamName(_BATCH, "Req.spec_num_correct_drafts", None, "what its verifies accepted"),
    UpstreamName(
        "sglang.srt.managers.scheduler", "Scheduler.running_batch", None, "how many requests run"
    ),
    UpstreamName(
        _WORKER,
        "EAGLEWorkerV2.activate_step_by_batch",
        ("self", "batch_size"),
        "which shape SGLang's adaptive mode runs",
    ),
)
