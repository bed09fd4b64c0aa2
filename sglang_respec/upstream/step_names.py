"""Names of SGLang behind a step: what it costs the host, and what is seen of it from outside.

Part of `contract.py`.
"""

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
        "sglang.srt.speculative.eagle_utils",
        "eagle_prepare_for_decode",
        ("batch",),
        "left out while slots last",
    ),
    UpstreamName(
        "sglang.srt.mem_cache.allocation_sizing",
        "get_alloc_len_per_decode",
        (),
        "slots that one round may write",
    ),
    UpstreamName(
        "sglang.srt.managers.scheduler",
        "Scheduler._forward_isolation",
        ("self", "batch", "overlap"),
        "saves and restores a batch",
    ),
    UpstreamName(
        "sglang.srt.mem_cache.kv_cache_builder",
        "build_kv_cache",
        (
            "server_args",
            "model_config",
            "tp_worker",
            "page_size",
            "spec_algorithm",
            "enable_metrics",
            "enable_kv_cache_events",
            "enable_hierarchical_cache",
            "hicache_draft_plan",
            "dynamo_kv_event_format",
            "kv_event_lora_names",
            "draft_swa_window",
        ),
        "its spec_algorithm says how prefixes are keyed",
    ),
    UpstreamName(_BATCH, "ScheduleBatch.maybe_evict_swa", ("self",), "part of what is left out"),
    UpstreamName(
        _WORKER,
        "EAGLEWorkerV2.activate_step_by_batch",
        ("self", "batch_size"),
        "which shape SGLang's adaptive mode runs",
    ),
)
