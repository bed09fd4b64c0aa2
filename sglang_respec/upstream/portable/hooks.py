"""Replacements that fill what SGLang lacks on a machine with no GPU."""

from sglang_respec.upstream.hook_table import Hook

PORTABLE = "sglang_respec.upstream.portable"
CACHE_LOCS = "sglang.kernels.ops.speculative.cache_locs"
EAGLE_OPS = "sglang.kernels.ops.speculative.eagle"
ALLOCATION = "sglang.srt.mem_cache.allocation"
EAGLE_UTILS = "sglang.srt.speculative.eagle_utils"

_TRITON_ONLY = "SGLang launches it as a Triton kernel on every device but its own CPU engine"
_PLATFORM_SEAM = "SGLang's platform interface offers a seam for it"

PORTABLE_HOOKS = (
    *(
        Hook(
            name=name.removesuffix("_func").replace("_", "-"),
            target=f"{module}.{name}",
            kind="replace",
            replacement=f"{PORTABLE}.index_ops:{name}",
            symptom="Triton finds no active driver, at the first request that gets there",
            cause=_TRITON_ONLY,
            remove_when=_PLATFORM_SEAM,
        )
        for module, name in (
            (CACHE_LOCS, "assign_draft_cache_locs_contiguous_func"),
            (CACHE_LOCS, "fill_front_out_cache_loc_func"),
            (EAGLE_OPS, "fill_bonus_tokens_func"),
            (EAGLE_OPS, "fill_accept_out_cache_loc_func"),
            (ALLOCATION, "assign_req_to_token_pool_func"),
            (ALLOCATION, "get_last_loc"),
        )
    ),
    *(
        Hook(
            name=name.replace("_", "-"),
            target=f"{EAGLE_UTILS}.{name}",
            kind="assign",
            replacement=f"{PORTABLE}.sampling_ops:{name}",
            symptom="TypeError 'NoneType' is not callable when a temperature is verified",
            cause="SGLang has this kernel for GPUs only and leaves the name None elsewhere",
            remove_when=_PLATFORM_SEAM,
        )
        for name in (
            "top_k_renorm_prob",
            "top_p_renorm_prob",
            "tree_speculative_sampling_target_only",
        )
    ),
    Hook(
        name="fork-children",
        target="sglang.srt.entrypoints.engine._set_envs_and_config",
        kind="after",
        replacement=f"{PORTABLE}.processes:fork_children",
        symptom="a server on a laptop needs a minute and a half to start",
        cause="each of SGLang's processes is spawned and imports everything again",
        remove_when="SGLang's imports take seconds, or it forks where that is safe",
    ),
    Hook(
        name="release-memory",
        target=(
            "sglang.srt.managers.scheduler_components.weight_updater."
            "SchedulerWeightUpdaterManager.release_memory_occupation"
        ),
        kind="around",
        replacement=f"{PORTABLE}.memory:release_on_a_cpu",
        symptom="/release_memory_occupation ends a server without a GPU",
        cause="SGLang synchronises the device that torch was built for, whatever serves",
        remove_when="it synchronises the server's own device",
    ),
    Hook(
        name="murmur-hash",
        target="sglang.kernels.ops.sampling.murmur_hash.murmur_hash32",
        kind="replace",
        replacement="sglang_respec.sampling.noise:murmur_hash32",
        symptom="ImportError of sgl_kernel when a seeded request is sampled",
        cause="on a CPU SGLang hashes with a compiled kernel that needs libcuda to load",
        remove_when="SGLang hashes in PyTorch where its kernel cannot load",
    ),
    Hook(
        name="softcap-logits",
        target="sglang.kernels.ops.activation.softcap.softcap_inplace_logits",
        kind="replace",
        replacement=f"{PORTABLE}.logit_ops:softcap_inplace_logits",
        symptom="Triton finds no active driver at the first prefill of a Gemma 2",
        cause=_TRITON_ONLY,
        remove_when=_PLATFORM_SEAM,
    ),
    Hook(
        name="aligned-heads",
        target="sglang.srt.configs.update_config.adjust_config_with_unaligned_cpu_tp",
        kind="around",
        replacement=f"{PORTABLE}.model_config:adjust_only_when_unaligned",
        symptom="shape mismatch in the KV pool for a Qwen2 whose head_dim is not hidden / heads",
        cause="on a CPU SGLang marks every config as padded, and Qwen2 then derives head_dim",
        remove_when="SGLang marks only configs that it really padded",
    ),
    Hook(
        name="draft-decode-backend",
        target="sglang.srt.speculative.draft_utils.DraftBackendFactory.create_decode_backend",
        kind="around",
        replacement=f"{PORTABLE}.backend_factory:create_decode_backend",
        symptom="ValueError 'EAGLE is not supported in decode attention backend portable'",
        cause="the factory's map of backends is fixed",
        remove_when=_PLATFORM_SEAM,
    ),
    Hook(
        name="draft-extend-backend",
        target=(
            "sglang.srt.speculative.draft_utils.DraftBackendFactory.create_draft_extend_backend"
        ),
        kind="around",
        replacement=f"{PORTABLE}.backend_factory:create_draft_extend_backend",
        symptom="ValueError 'EAGLE is not supported in attention backend portable'",
        cause="the factory's map of backends is fixed",
        remove_when=_PLATFORM_SEAM,
    ),
)
