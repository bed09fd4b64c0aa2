"""The names of SGLang behind drafter swaps and protected policy pushes; part of `contract.py`."""

from sglang_respec.upstream.contract_table import UpstreamName

_SCHEDULER = "sglang.srt.managers.scheduler"
_CONTROL = "sglang.srt.managers.tokenizer_control_mixin"
_MANAGER = "sglang.srt.managers.tokenizer_manager"
_IO = "sglang.srt.managers.io_struct"
_STREAMER = "sglang.srt.managers.scheduler_components.output_streamer"
_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater"
_LINEAR = "sglang.srt.layers.linear"
_CONTEXT = "sglang.srt.runtime_context"
_WORKER = "sglang.srt.speculative.eagle_worker_v2"

DRAFTER_NAMES = (
    UpstreamName(
        _SCHEDULER, "Scheduler.init_request_dispatcher", ("self",), "our operations follow it"
    ),
    UpstreamName(
        _SCHEDULER, "Scheduler.get_output_streamer_class", ("self",), "the class is replaced"
    ),
    UpstreamName(_SCHEDULER, "Scheduler.collect_inflight_reqs", ("self",), "marks version spans"),
    UpstreamName(_SCHEDULER, "Scheduler.chunked_req", None, "marks version spans"),
    UpstreamName(_SCHEDULER, "Scheduler.forward_stream_ctx", None, "commits run on it"),
    UpstreamName(
        "sglang.srt.managers.schedule_batch", "Req.finished_len", None, "ends version spans"
    ),
    UpstreamName("sglang.utils", "TypeBasedDispatcher._mapping", None, "takes our operations"),
    UpstreamName(_CONTROL, "TokenizerControlMixin.init_communicators", ("self",), "ours follow"),
    UpstreamName(_MANAGER, "TokenizerManager._dispatch_to_scheduler", ("self", "obj"), "sends"),
    UpstreamName(_MANAGER, "TokenizerManager.auto_create_handle_loop", ("self",), "receives"),
    UpstreamName(_MANAGER, "TokenizerManager.config_value", ("self", "name"), "admin_api_key"),
    *(
        UpstreamName(_MANAGER, f"TokenizerManager.{name}", None, "/health by heartbeat")
        for name in ("last_receive_tstamp", "gracefully_exit", "server_status")
    ),
    *(
        UpstreamName(_MANAGER, f"ServerStatus.{name}", None, "/health by heartbeat")
        for name in ("Starting", "Up", "UnHealthy")
    ),
    UpstreamName(_IO, "HealthCheckOutput", None, "answers a heartbeat"),
    UpstreamName(
        "sglang.srt.entrypoints.http_server",
        "HEALTH_CHECK_TIMEOUT",
        None,
        "how long the scheduler may be silent",
    ),
    UpstreamName(
        _MANAGER,
        "TokenizerManager._accumulate_request_meta_info",
        ("meta_info", "state", "key", "values"),
        "version spans are put in whole",
    ),
    UpstreamName(
        "sglang.srt.managers.communicator",
        "FanOutCommunicator",
        ("send", "fan_out"),
        "awaits the scheduler's answer",
    ),
    UpstreamName(_IO, "BaseReq", None, "our messages are of its kind"),
    UpstreamName(_IO, "hook_custom_types", None, "makes our messages known"),
    UpstreamName(
        "sglang.srt.managers.scheduler_components.output_sender",
        "SenderWrapper.send_output",
        ("self", "output"),
        "sends the guard's verdict",
    ),
    UpstreamName(
        _STREAMER,
        "SchedulerOutputStreamer.build_additional_customized_info",
        ("self", "reqs"),
        "overridden",
    ),
    UpstreamName(
        _STREAMER, "SchedulerOutputStreamer.has_additional_customized_info", None, "overridden"
    ),
    UpstreamName(
        "sglang.srt.utils.weight_versions",
        "compute_weight_version_spans",
        ("events", "current_version", "num_output_tokens"),
        "version spans",
    ),
    UpstreamName(
        "sglang.srt.utils.weight_versions",
        "WeightVersionEvent",
        ("old_version", "num_output_tokens"),
        "version spans",
    ),
    UpstreamName(
        _UPDATER,
        "SchedulerWeightUpdaterManager._select_runners",
        ("self", "selector"),
        "wrapped: policy pushes go to the target",
    ),
    UpstreamName(
        _UPDATER,
        "SchedulerWeightUpdaterManager.offload_tags",
        None,
        "no swap while the weights are released",
    ),
    UpstreamName("sglang.srt.constants", "GPU_MEMORY_TYPE_WEIGHTS", None, "as offload_tags"),
    *(
        UpstreamName(
            _UPDATER,
            f"SchedulerWeightUpdaterManager.{name}",
            ("self", "recv_req"),
            "wrapped: policy pushes",
        )
        for name in (
            "begin_weight_update",
            "update_weights_from_disk",
            "update_weights_from_distributed",
            "update_weights_from_tensor",
            "update_weights_from_ipc",
        )
    ),
    *(
        UpstreamName(_IO, name, ("success", "message"), "the answer to a policy push that failed")
        for name in (
            "UpdateWeightFromDiskReqOutput",
            "UpdateWeightsFromDistributedReqOutput",
            "UpdateWeightsFromTensorReqOutput",
            "UpdateWeightsFromIPCReqOutput",
        )
    ),
    UpstreamName(_LINEAR, "LinearBase", ("input_size", "output_size"), "whole shapes"),
    UpstreamName(_LINEAR, "MergedColumnParallelLinear.output_sizes", None, "whole shapes"),
    *(
        UpstreamName(_LINEAR, f"QKVParallelLinear.{name}", None, "whole shapes")
        for name in ("total_num_heads", "total_num_kv_heads", "head_size", "v_head_size")
    ),
    UpstreamName(
        "sglang.srt.layers.vocab_parallel_embedding",
        "VocabParallelEmbedding.org_vocab_size",
        None,
        "whole shapes",
    ),
    UpstreamName(
        "sglang.srt.models.llama_eagle3",
        "LlamaForCausalLMEagle3.load_weights",
        ("self", "weights"),
        "stages a push, against twins of the parameters",
    ),
    UpstreamName(_WORKER, "EagleDraftWorker.hot_token_id", None, "d2t as drafting reads it"),
    UpstreamName(_WORKER, "EagleDraftWorker.draft_runner", None, "the serving drafter"),
    UpstreamName(_CONTEXT, "get_parallel", None, "ranks, and their group for votes"),
    UpstreamName(_CONTEXT, "get_observability", None, "whether metrics are on"),
    UpstreamName(
        "sglang.srt.utils.auth", "auth_level", ("level",), "our routes take the admin key"
    ),
    UpstreamName("sglang.srt.utils.auth", "AuthLevel.ADMIN_OPTIONAL", None, "as auth_level"),
    UpstreamName("sglang.srt.entrypoints.http_server", "app", None, "our routes are mounted on it"),
)
