"""Names of SGLang that measuring step times relies on. Part of `upstream/contract.py`."""

from sglang_respec.upstream.contract_table import UpstreamName

_BATCH = "sglang.srt.managers.schedule_batch"
_POOL = "sglang.srt.mem_cache.memory_pool"
_RUNNER = "sglang.srt.model_executor.model_runner"

PROFILE_NAMES = (
    UpstreamName(
        _BATCH,
        "ScheduleBatch.init_new",
        (
            "cls",
            "reqs",
            "req_to_token_pool",
            "token_to_kv_pool_allocator",
            "tree_cache",
            "model_config",
            "enable_overlap",
            "spec_algorithm",
        ),
        "a batch that no client sent",
    ),
    UpstreamName(_BATCH, "ScheduleBatch.prepare_for_extend", ("self",), "admits its requests"),
    UpstreamName(_BATCH, "ScheduleBatch.prepare_for_decode", ("self",), "reserves its slots"),
    UpstreamName(_BATCH, "ScheduleBatch.prefill_input_ids_cpu", None, "its prompt is not run"),
    UpstreamName(
        _BATCH,
        "Req.__init__",
        ("self", "rid", "origin_input_text", "origin_input_ids", "sampling_params"),
        "its requests",
    ),
    UpstreamName(_BATCH, "Req.full_untruncated_fill_ids", None, "the whole prompt is committed"),
    UpstreamName(_BATCH, "Req.extend_end", None, "the whole prompt is committed"),
    UpstreamName(
        "sglang.srt.mem_cache.cache_init_params", "CacheInitParams", None, "no prefix cache"
    ),
    UpstreamName("sglang.srt.mem_cache.radix_cache", "RadixCache", None, "one that is off"),
    UpstreamName(_POOL, "ReqToTokenPool.free_slots", None, "put back as it was"),
    UpstreamName(_POOL, "ReqToTokenPool.req_generation", None, "put back as it was"),
    UpstreamName(
        "sglang.srt.mem_cache.allocator.token",
        "TokenToKVPoolAllocator.clear",
        ("self",),
        "the KV pool is empty again",
    ),
    UpstreamName(
        "sglang.srt.mem_cache.allocation_sizing",
        "get_alloc_reserve_per_decode",
        (),
        "slots that a decode step reserves for each request",
    ),
    UpstreamName(_RUNNER, "ModelRunner.max_running_requests", None, "the largest batch"),
    UpstreamName(
        "sglang.srt.managers.schedule_batch",
        "ScheduleBatch.sampling_info",
        None,
        "copied for each forward, as the scheduler does",
    ),
)
