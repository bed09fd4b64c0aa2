"""The names of SGLang behind collecting rollouts; part of `contract.py`."""

from sglang_respec.upstream.contract_table import UpstreamName

_AUXILIARY = "sglang.srt.managers.auxiliary_output"
_BATCH = "sglang.srt.managers.schedule_batch"
_UPDATER = "sglang.srt.managers.scheduler_components.weight_updater"
_PARAMS = "sglang.srt.sampling.sampling_params"

COLLECTING_NAMES = (
    UpstreamName(
        _AUXILIARY, "append_auxiliary_output", ("current", "output"), "a step's rows travel along"
    ),
    UpstreamName(
        _AUXILIARY,
        "DeviceAuxiliaryOutput.copy_to_host",
        ("self", "copy_tensor"),
        "implemented: rows to pinned memory",
    ),
    UpstreamName(
        _AUXILIARY,
        "HostAuxiliaryOutput.consume",
        ("self", "batch", "commits"),
        "implemented: rows of committed tokens",
    ),
    *(
        UpstreamName(_AUXILIARY, f"CommittedTokens.{name}", None, "which rows count")
        for name in ("output_index", "token_ids")
    ),
    *(
        UpstreamName(
            "sglang.srt.layers.logits_processor",
            f"LogitsProcessorOutput.{name}",
            None,
            "what is collected, and where it travels",
        )
        for name in ("hidden_states", "next_token_logits", "auxiliary_device_output")
    ),
    UpstreamName(
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "SchedulerBatchResultProcessor.consume_auxiliary_output",
        ("cls", "batch", "output", "output_starts"),
        "hands a step's rows back",
    ),
    UpstreamName(
        "sglang.srt.constants", "HEALTH_CHECK_RID_PREFIX", None, "such requests are left out"
    ),
    *(
        UpstreamName(_BATCH, f"Req.{name}", None, "what is collected, and whether")
        for name in (
            "origin_input_ids",
            "output_ids",
            "finished_reason",
            "sampling_params",
            "custom_logit_processor",
            "lora_id",
            "multimodal_inputs",
            "input_embeds",
        )
    ),
    *(
        UpstreamName(_PARAMS, f"SamplingParams.{name}", None, "whether a request is collected")
        for name in (
            "frequency_penalty",
            "presence_penalty",
            "repetition_penalty",
            "min_new_tokens",
            "max_new_tokens",
            "json_schema",
            "regex",
            "ebnf",
            "structural_tag",
            "logit_bias",
            "watermark",
            "sampling_seed",
        )
    ),
    UpstreamName(
        _UPDATER, "SchedulerWeightUpdaterManager._session", None, "one policy per session"
    ),
    UpstreamName(_UPDATER, "_WeightUpdateSession.loaded_weights", None, "as _session"),
)
