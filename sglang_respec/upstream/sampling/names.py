"""Names of SGLang that coupled sampling relies on; part of `upstream/contract.py`."""

from sglang_respec.upstream.contract_table import UpstreamName

_SAMPLER = "sglang.srt.layers.sampler"
_LOGPROBS = "sglang.srt.layers.logprob_processor"
_INFO = "sglang.srt.sampling.sampling_batch_info"
_BATCH = "sglang.srt.managers.schedule_batch"
_MANAGER = "sglang.srt.managers.tokenizer_manager"
_WORKER = "sglang.srt.speculative.eagle_worker_v2"
_UTILS = "sglang.srt.speculative.eagle_utils"
_SPEC_UTILS = "sglang.srt.speculative.spec_utils"
_CONTEXT = "sglang.srt.model_executor.forward_context"

SAMPLING_NAMES = (
    UpstreamName(
        _SAMPLER,
        "Sampler.forward",
        (
            "self",
            "logits_output",
            "sampling_info",
            "return_logprob",
            "top_logprobs_nums",
            "token_ids_logprobs",
            "positions",
        ),
        "overridden",
    ),
    UpstreamName(
        _SAMPLER, "Sampler._preprocess_logits", ("self", "logits", "sampling_info"), "called"
    ),
    UpstreamName(
        _SAMPLER,
        "Sampler._sync_token_ids_across_tp",
        ("self", "batch_next_token_ids", "sampling_info"),
        "called",
    ),
    UpstreamName(
        _SAMPLER,
        "Sampler._build_sampling_mask_output",
        (
            "self",
            "batch_next_token_ids",
            "sampling_mask_capture",
            "support_capture_indices",
        ),
        "packs our allowed set",
    ),
    UpstreamName(_SAMPLER, "_SamplingMaskCapture", None, "holds our allowed set"),
    UpstreamName(_SAMPLER, "SGLANG_RETURN_ORIGINAL_LOGPROB", None, "honoured"),
    UpstreamName(
        _SAMPLER,
        "apply_custom_logit_processor",
        ("logits", "sampling_batch_info", "num_tokens_in_batch"),
        "applied at the root of a tree",
    ),
    UpstreamName(_LOGPROBS, "LogprobResult", None, "carries our log-probabilities"),
    UpstreamName(
        _LOGPROBS,
        "OutputLogprobProcessor.compute_logprobs",
        ("self", "logprobs", "top_logprobs_nums", "token_ids_logprobs", "batch_next_token_ids"),
        "top log-probabilities",
    ),
    UpstreamName(
        _LOGPROBS,
        "compute_spec_logprobs",
        ("batch", "logits_output", "predict"),
        "wrapped: ours are there already",
    ),
    UpstreamName(
        "sglang.srt.model_executor.model_runner",
        "ModelRunner.sample",
        ("self", "logits_output", "forward_batch"),
        "wrapped: penalties, request table",
    ),
    UpstreamName(_INFO, "SamplingBatchInfo.update_penalties", ("self",), "switched off"),
    UpstreamName(
        _INFO,
        "SamplingBatchInfo._apply_pre_grammar_logits_transforms",
        ("self", "logits"),
        "switched off: it applies penalties and nothing else",
    ),
    UpstreamName(
        _INFO,
        "SamplingBatchInfo.filter_batch",
        ("self", "keep_indices", "keep_indices_device"),
        "our rows follow",
    ),
    UpstreamName(_INFO, "SamplingBatchInfo.merge_batch", ("self", "other"), "our rows follow"),
    UpstreamName(_INFO, "SamplingBatchInfo.copy_for_forward", ("self",), "our rows follow"),
    UpstreamName(_BATCH, "ScheduleBatch.cumulate_penalty_output_tokens", ("self",), "switched off"),
    UpstreamName(
        _BATCH,
        "Req._check_vocab_boundary_finish",
        ("self", "new_accepted_tokens"),
        "an error, not a stop",
    ),
    UpstreamName(_BATCH, "FINISH_ABORT", None, "how a failed request ends"),
    UpstreamName(
        "sglang.srt.managers.overlap_utils",
        "resolve_forward_inputs",
        ("batch", "future_map"),
        "tokens of failed requests are not embedded",
    ),
    UpstreamName(_MANAGER, "TokenizerManager._create_tokenized_object", None, "seeds are drawn"),
    UpstreamName(
        _MANAGER, "TokenizerManager._send_one_request", ("self", "tokenized_obj"), "n samples"
    ),
    UpstreamName(
        _MANAGER, "TokenizerManager._send_batch_request", ("self", "tokenized_objs"), "seeds"
    ),
    UpstreamName(
        _MANAGER, "TokenizerManager._handle_batch_output", ("self", "recv_obj"), "seeds returned"
    ),
    UpstreamName(
        _MANAGER,
        "TokenizerManager.update_request_meta_info",
        ("self", "meta_info", "state", "customized_info", "index", "finish_reason"),
        "seeds returned",
    ),
    UpstreamName(_WORKER, "EagleDraftWorker.draft_forward", ("self", "forward_batch"), "ours"),
    UpstreamName(
        _WORKER,
        "EagleDraftWorker._draft_extend_for_prefill",
        ("self", "batch", "target_hidden_states", "next_token_ids"),
        "its candidates are ranked again",
    ),
    UpstreamName(
        _WORKER,
        "EagleDraftWorker._draft_extend_for_decode",
        ("self", "batch", "batch_result"),
        "its candidates are ranked again",
    ),
    UpstreamName(_WORKER, "EagleDraftWorker._capture_cuda_graphs", ("self",), "wrapped"),
    UpstreamName(_WORKER, "EAGLEWorkerV2.verify", ("self", "batch"), "wrapped"),
    UpstreamName(
        _UTILS,
        "eagle_sample",
        ("verify_input", "batch", "logits_output", "grammar_mask", "uno_target_max_top_k"),
        "our verification",
    ),
    UpstreamName(
        _UTILS,
        "per_step_draft_out_cache_loc",
        ("out_cache_loc", "batch_size", "topk", "num_steps"),
        "slots of each drafting step",
    ),
    UpstreamName(
        _UTILS,
        "organize_draft_results",
        ("score_list", "token_list", "parents_list", "num_draft_token"),
        "keeps the best paths",
    ),
    UpstreamName(
        _SPEC_UTILS,
        "select_top_k_tokens",
        ("i", "topk_p", "topk_index", "hidden_states", "scores", "topk"),
        "follows up the best paths",
    ),
    UpstreamName(_SPEC_UTILS, "SIMULATE_ACC_LEN", None, "left to SGLang"),
    UpstreamName(_CONTEXT, "ForwardContext", None, "names a step's attention backend"),
    UpstreamName(_CONTEXT, "forward_context", None, "names a step's attention backend"),
)
