"""Names of SGLang that planned steps rely on: the plain tier, catch-up, the shapes held ready.

Part of `upstream/contract.py`.
"""

from sglang_respec.upstream.contract_table import UpstreamName

_WORKER = "sglang.srt.speculative.eagle_worker_v2"
_BATCH = "sglang.srt.managers.schedule_batch"
_FORWARD = "sglang.srt.model_executor.forward_batch_info"
_RUNNER = "sglang.srt.model_executor.model_runner"
_UTILS = "sglang.srt.speculative.eagle_utils"
_CONTEXTS = "sglang.srt.layers.moe.utils"


def _fields(module: str, owner: str, names: str, why: str) -> tuple[UpstreamName, ...]:
    return tuple(UpstreamName(module, f"{owner}.{name}", None, why) for name in names.split())


PLANNED_NAMES = (
    UpstreamName(
        _WORKER,
        "EAGLEWorkerV2.forward_batch_generation",
        ("self", "batch", "on_publish", "grammar_barrier", "pp_proxy_tensors"),
        "planned first; its round runs unless the plan is plain",
    ),
    UpstreamName(_WORKER, "EAGLEWorkerV2.init_cuda_graphs", ("self",), "states are built after it"),
    UpstreamName(
        "sglang.srt.speculative.base_spec_worker",
        "BaseSpecWorker.alloc_memory_pool",
        None,
        "the ring of hidden states is made after it",
    ),
    UpstreamName(
        "sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state",
        "SpecAuxHiddenStateConfig.eagle_use_aux_hidden_state",
        None,
        "cleared where no drafter ever runs",
    ),
    UpstreamName(
        _RUNNER,
        "ModelRunner.init_attention_backends",
        ("self",),
        "reads it, after the workers are made",
    ),
    UpstreamName(
        _WORKER,
        "EAGLEWorkerV2.on_verify_complete_cpu",
        ("self", "num_correct_drafts_per_req", "batch_size"),
        "a step's results have reached the host",
    ),
    UpstreamName(_WORKER, "EAGLEWorkerV2.last_shared_read_runner", None, "the target's if plain"),
    UpstreamName(
        _WORKER,
        "EAGLEWorkerV2.build_adaptive_runtime_state",
        ("self", "speculative_num_steps", "speculative_num_draft_tokens"),
        "builds the state of a shape",
    ),
    UpstreamName(
        _WORKER, "EAGLEWorkerV2.apply_runtime_state", ("self", "state"), "applied once, then read"
    ),
    UpstreamName(
        _WORKER, "EagleDraftWorker.draft", ("self", "batch", "with_topology"), "narrowed to a top-k"
    ),
    UpstreamName(_WORKER, "EagleDraftWorker.parallel_layout", None, "the drafter's layout"),
    *_fields(
        _WORKER,
        "EagleDraftWorker",
        "draft_attn_backend draft_extend_attn_backend cuda_graph_runner "
        "cuda_graph_runner_for_draft_extend _topk1_parents_prealloc _topk1_score_indices_prealloc",
        "swapped with the shape",
    ),
    *_fields(_RUNNER, "ModelRunner", "attn_backend decode_cuda_graph_runner", "swapped"),
    UpstreamName(
        _UTILS,
        "_eagle_prefill_tail_tokens",
        ("batch", "next_token_ids"),
        "the token after a chunk",
    ),
    UpstreamName(
        _UTILS, "get_draft_recurrent_hidden_state_spec", ("model_runner",), "shape of cold rows"
    ),
    UpstreamName(
        _UTILS, "get_draft_input_from_target_hidden_dim", ("model_runner",), "width of the ring"
    ),
    *_fields(
        "sglang.srt.speculative.eagle_info",
        "EagleDraftInput",
        "topk_p topk_index hidden_states bonus_tokens",
        "what a step leaves for the next",
    ),
    *_fields(
        _BATCH,
        "ScheduleBatch",
        "reqs input_ids req_pool_indices req_pool_indices_cpu seq_lens seq_lens_cpu seq_lens_sum "
        "orig_seq_lens prefix_lens extend_lens extend_num_tokens out_cache_loc multimodal_inputs "
        "chunked_req chunked_req_next_prompt_token decoding_reqs spec_info has_grammar "
        "return_logprob return_hidden_states top_logprobs_nums token_ids_logprobs "
        "extend_logprob_start_lens extend_input_logprob_token_ids is_extend_in_batch",
        "set for a plain step or a catch-up, or read",
    ),
    *_fields(_BATCH, "Req", "rid retraction_count", "tells a later chunk from a new prefill"),
    UpstreamName(
        _FORWARD,
        "ForwardBatch.init_new",
        (
            "cls",
            "batch",
            "model_runner",
            "capture_hidden_mode",
            "return_hidden_states_before_norm",
        ),
        "the plain step's batch",
    ),
    UpstreamName(_FORWARD, "CaptureHiddenMode", None, "hidden states of every token, or none"),
    UpstreamName(
        "sglang.srt.managers.tp_worker",
        "TpModelWorker.forward_batch_generation",
        ("self", "batch", "forward_batch", "pp_proxy_tensors", "is_verify"),
        "the plain step's forward",
    ),
    UpstreamName(
        "sglang.srt.model_executor.runner.base_runner",
        "BaseRunner.return_hidden_states_mode",
        None,
        "forced in the plain tier's graph",
    ),
    UpstreamName(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner",
        "DecodeCudaGraphRunner",
        ("model_runner", "attn_backend"),
        "captures the plain tier's graph",
    ),
    UpstreamName(
        _RUNNER,
        "ModelRunner._get_attention_backend",
        ("self", "init_new_workspace"),
        "the plain tier's backend",
    ),
    UpstreamName(_CONTEXTS, "speculative_moe_backend_context", (), "around the drafter"),
    UpstreamName(_CONTEXTS, "speculative_moe_a2a_backend_context", (), "around the drafter"),
    UpstreamName(
        "sglang.srt.speculative.spec_utils", "draft_tp_context", None, "around the drafter"
    ),
    UpstreamName(
        "sglang.srt.utils.common", "async_d2h", ("tensor",), "rank counts reach the host with it"
    ),
    UpstreamName(
        "sglang.srt.runtime_context", "get_context", (), "settings while a state is built"
    ),
)
