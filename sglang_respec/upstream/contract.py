"""Every name of SGLang this project relies on, with the parameters it passes or receives.

SGLang's internals change by thousands of lines between releases. A contract test parses
the installed sources for these names without importing them, so a renamed one fails in
milliseconds, before a server does in minutes.
"""

from sglang_respec.upstream.collecting_names import COLLECTING_NAMES
from sglang_respec.upstream.contract_table import UpstreamName
from sglang_respec.upstream.drafter_names import DRAFTER_NAMES
from sglang_respec.upstream.planned_names import PLANNED_NAMES
from sglang_respec.upstream.sampling.names import SAMPLING_NAMES

_TREE = "sglang.kernels.ops.speculative.spec_tree"
_LOCS = "sglang.kernels.ops.speculative.cache_locs"
_EAGLE_OPS = "sglang.kernels.ops.speculative.eagle"
_ALLOC = "sglang.srt.mem_cache.allocation"
_POOL = "sglang.srt.mem_cache.memory_pool"
_REGISTRY = "sglang.srt.plugins.hook_registry"
_FACTORY = "sglang.srt.speculative.draft_utils"
_ADAPTIVE = "sglang.srt.speculative.adaptive_spec_params"
_CHOICES = "sglang.srt.arg_groups.choices"

UPSTREAM_NAMES = (
    UpstreamName(_REGISTRY, "HookRegistry.register", ("cls", "target", "hook"), "enters hooks"),
    UpstreamName(_REGISTRY, "HookRegistry.apply_hooks", ("cls",), "applies them at once"),
    UpstreamName(_REGISTRY, "HookRegistry._patched", None, "proof that a hook was applied"),
    UpstreamName(_REGISTRY, "HookRegistry._hooks", None, "finds a later replacement"),
    UpstreamName(
        "sglang.srt.server_args", "prepare_server_args", ("argv",), "start checks follow it"
    ),
    UpstreamName(
        "sglang.srt.speculative.eagle_worker_v2", "EAGLEWorkerV2", None, "the worker we extend"
    ),
    UpstreamName(
        _ADAPTIVE,
        "AdaptiveSpeculativeParams",
        None,
        "SGLang's policy, run beside ours",
    ),
    UpstreamName(
        _ADAPTIVE,
        "AdaptiveSpeculativeParams.__init__",
        ("self", "initial_steps", "cfg_path"),
        "SGLang's policy, run beside ours",
    ),
    UpstreamName(
        _ADAPTIVE,
        "AdaptiveSpeculativeParams.get_steps_for_batch",
        ("self", "batch_size"),
        "its decision",
    ),
    UpstreamName(
        _ADAPTIVE,
        "AdaptiveSpeculativeParams.on_verify_complete",
        ("self", "num_correct_drafts_per_req", "batch_size"),
        "what it learns from",
    ),
    UpstreamName(
        _TREE,
        "build_tree_kernel_efficient_func",
        (
            "parent_list",
            "top_scores_index",
            "seq_lens",
            "tree_mask",
            "positions",
            "retrieve_index",
            "retrieve_next_token",
            "retrieve_next_sibling",
            "topk",
            "spec_steps",
            "num_verify_tokens",
            "tree_mask_mode",
        ),
        "replaced by our kernel",
    ),
    UpstreamName(
        _TREE,
        "verify_tree_greedy_func",
        (
            "predicts",
            "accept_index",
            "accept_token_num",
            "candidates",
            "retrieve_index",
            "retrieve_next_token",
            "retrieve_next_sibling",
            "target_predict",
            "topk",
        ),
        "replaced by our kernel",
    ),
    UpstreamName(_TREE, "TreeMaskMode", None, "our enum has its values"),
    UpstreamName(
        _LOCS,
        "assign_draft_cache_locs_contiguous_func",
        (
            "req_pool_indices",
            "req_to_token",
            "seq_lens",
            "out_cache_loc",
            "topk",
            "num_cols",
            "positions",
            "mrope",
        ),
        "PyTorch version on a CPU",
    ),
    UpstreamName(
        _LOCS,
        "fill_front_out_cache_loc_func",
        ("num_front", "out_cache_loc", "front_out_cache_loc"),
        "PyTorch version on a CPU",
    ),
    UpstreamName(
        _LOCS,
        "assign_extend_cache_locs_func",
        (
            "req_pool_indices",
            "req_to_token",
            "start_offset",
            "end_offset",
            "batch_size",
            "draft_token_num",
            "device",
        ),
        "asks the platform for its version",
    ),
    UpstreamName(
        _EAGLE_OPS,
        "fill_bonus_tokens_func",
        ("accept_tokens", "accept_lens", "bonus_tokens", "accept_stride", "batch_size"),
        "PyTorch version on a CPU",
    ),
    UpstreamName(
        _EAGLE_OPS,
        "fill_accept_out_cache_loc_func",
        ("accept_index", "out_cache_loc", "accept_out_cache_loc", "size"),
        "PyTorch version on a CPU",
    ),
    UpstreamName(
        _ALLOC,
        "assign_req_to_token_pool_func",
        (
            "req_pool_indices",
            "req_to_token",
            "start_offset",
            "end_offset",
            "out_cache_loc",
            "batch_size",
        ),
        "PyTorch version on a CPU",
    ),
    UpstreamName(
        _ALLOC,
        "get_last_loc",
        ("req_to_token", "req_pool_indices_tensor", "prefix_lens_tensor"),
        "PyTorch version on a CPU",
    ),
    UpstreamName(
        _POOL, "MHATokenToKVPool._move_kv_cache_impl", ("self", "tgt_loc", "src_loc"), "overridden"
    ),
    UpstreamName(_POOL, "MHATokenToKVPool._init_kv_copy_and_warmup", ("self",), "overridden"),
    UpstreamName(_POOL, "KVWriteLoc", None, "names the slots a layer writes"),
    UpstreamName(_FACTORY, "DraftBackendFactory.create_decode_backend", ("self",), "wrapped"),
    UpstreamName(_FACTORY, "DraftBackendFactory.create_draft_extend_backend", ("self",), "wrapped"),
    UpstreamName(
        "sglang.srt.sampling.sampling_batch_info",
        "SamplingBatchInfo.from_schedule_batch",
        ("cls", "batch", "vocab_size"),
        "seeds are added to its result",
    ),
    UpstreamName(
        "sglang.srt.layers.sampler",
        "top_k_top_p_min_p_sampling_from_probs_torch",
        (
            "probs",
            "top_ks",
            "top_ps",
            "min_ps",
            "need_min_p_sampling",
            "sampling_seed",
            "positions",
        ),
        "wrapped: min-p with a seed",
    ),
    UpstreamName(
        "sglang.srt.managers.scheduler_components.weight_updater",
        "SchedulerWeightUpdaterManager.release_memory_occupation",
        ("self", "recv_req"),
        "wrapped on a CPU",
    ),
    UpstreamName(
        "sglang.kernels.ops.sampling.murmur_hash",
        "murmur_hash32",
        ("seed", "positions", "col_indices"),
        "PyTorch version on a CPU",
    ),
    UpstreamName(
        "sglang.kernels.ops.activation.softcap",
        "softcap_inplace_logits",
        ("full_logits", "final_logit_softcapping"),
        "PyTorch version on a CPU",
    ),
    UpstreamName(
        "sglang.srt.configs.update_config",
        "adjust_config_with_unaligned_cpu_tp",
        ("model_config", "load_config", "tp_size"),
        "wrapped on a CPU",
    ),
    UpstreamName(
        "sglang.srt.entrypoints.engine", "_set_envs_and_config", None, "fork follows it on a CPU"
    ),
    UpstreamName(_CHOICES, "add_attention_backend_choices", None, "names the portable backend"),
    UpstreamName(
        _CHOICES, "add_draft_attention_backend_choices", None, "names the portable backend"
    ),
    UpstreamName(
        "sglang.srt.layers.attention.attention_registry",
        "register_attention_backend",
        ("name",),
        "enters the portable backend",
    ),
    UpstreamName(
        "sglang.srt.layers.attention.verify_mask", "VerifyMask", None, "asks for small tree masks"
    ),
    UpstreamName("sglang.srt.platforms.cpu", "CpuDeviceMixin", None, "CPU device operations"),
    UpstreamName(
        "sglang.srt.platforms.interface",
        "SRTPlatform.get_speculative_cache_locs_fn",
        ("self",),
        "seam of the portable platform",
    ),
    UpstreamName(
        "sglang.srt.platforms.interface",
        "SRTPlatform.get_kv_pool_cls",
        ("self", "kind"),
        "seam of the portable platform",
    ),
    *SAMPLING_NAMES,
    *DRAFTER_NAMES,
    *PLANNED_NAMES,
    *COLLECTING_NAMES,
)
