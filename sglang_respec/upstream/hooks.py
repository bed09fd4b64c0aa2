"""Every replacement made in SGLang: one row each, with symptom, cause and removal condition.

Two groups. `RESPEC_HOOKS` are the product and apply on every device unless
`SGLANG_RESPEC=0`. `PORTABLE_HOOKS` fill what SGLang lacks on a machine with no GPU and
apply there always, since stock SGLang could not serve at all without them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

# `assign` sets a name that SGLang leaves None on this device: its `HookRegistry` would look
# for every other None in the process and replace those too.
Kind = Literal["replace", "around", "after", "before", "assign"]


@dataclass(frozen=True)
class Hook:
    """One replacement.

    target: dotted path inside SGLang.
    kind: replace, around, after or before, as SGLang's `HookRegistry` has them; or assign.
    make: imports and returns the replacement; late, so that listing hooks imports nothing.
    symptom, cause, remove_when: why it is here and when it can go.
    """

    name: str
    target: str
    kind: Kind
    make: Callable[[], Any]
    symptom: str
    cause: str
    remove_when: str


def _respec_worker() -> Any:
    from sglang_respec.upstream.worker import RespecWorker

    return RespecWorker


def _build_tree() -> Any:
    from sglang_respec.upstream import tree_ops

    tree_ops.chosen_kernel("build_tree")  # a setting that cannot serve is refused at start
    return tree_ops.build_tree_kernel_efficient_func


def _verify_tree() -> Any:
    from sglang_respec.upstream import tree_ops

    tree_ops.chosen_kernel("verify_tree")
    return tree_ops.verify_tree_greedy_func


def _refuse_bad_start() -> Any:
    from sglang_respec.upstream.start_checks import refuse_bad_start

    return refuse_bad_start


def _carry_seeds() -> Any:
    from sglang_respec.upstream.seeds import carry_seeds

    return carry_seeds


def _filter_min_p_first() -> Any:
    from sglang_respec.upstream.seeds import filter_min_p_first

    return filter_min_p_first


def _murmur_hash() -> Any:
    from sglang_respec.sampling.noise import murmur_hash32

    return murmur_hash32


def _index_op(name: str) -> Callable[[], Any]:
    def make() -> Any:
        from sglang_respec.upstream.portable import index_ops

        return getattr(index_ops, name)

    return make


def _sampling_op(name: str) -> Callable[[], Any]:
    def make() -> Any:
        from sglang_respec.upstream.portable import sampling_ops

        return getattr(sampling_ops, name)

    return make


def _softcap_logits() -> Any:
    from sglang_respec.upstream.portable.logit_ops import softcap_inplace_logits

    return softcap_inplace_logits


def _decode_backend() -> Any:
    from sglang_respec.upstream.portable.backend_factory import create_decode_backend

    return create_decode_backend


def _draft_extend_backend() -> Any:
    from sglang_respec.upstream.portable.backend_factory import create_draft_extend_backend

    return create_draft_extend_backend


def _adjust_heads() -> Any:
    from sglang_respec.upstream.portable.model_config import adjust_only_when_unaligned

    return adjust_only_when_unaligned


def _fork_children() -> Any:
    from sglang_respec.upstream.portable.processes import fork_children

    return fork_children


SPEC_TREE = "sglang.kernels.ops.speculative.spec_tree"
CACHE_LOCS = "sglang.kernels.ops.speculative.cache_locs"
EAGLE_OPS = "sglang.kernels.ops.speculative.eagle"
ALLOCATION = "sglang.srt.mem_cache.allocation"
EAGLE_UTILS = "sglang.srt.speculative.eagle_utils"

TREE_HOOKS = (
    Hook(
        name="build-tree",
        target=f"{SPEC_TREE}.build_tree_kernel_efficient_func",
        kind="replace",
        make=_build_tree,
        symptom="without a GPU: NotImplementedError 'EAGLE tree construction'",
        cause="SGLang builds trees with a CUDA kernel compiled at run time",
        remove_when="never: the tree kernels are this project's own on every device",
    ),
    Hook(
        name="verify-tree",
        target=f"{SPEC_TREE}.verify_tree_greedy_func",
        kind="replace",
        make=_verify_tree,
        symptom="without a GPU: NotImplementedError 'EAGLE greedy tree verification'",
        cause="SGLang walks trees with a CUDA kernel compiled at run time",
        remove_when="never: the tree kernels are this project's own on every device",
    ),
)

RESPEC_HOOKS = (
    Hook(
        name="worker",
        target="sglang.srt.speculative.eagle_worker_v2.EAGLEWorkerV2",
        kind="replace",
        make=_respec_worker,
        symptom="a new algorithm name loses branches on ('EAGLE', 'EAGLE3') all over SGLang",
        cause="CustomSpecAlgo lacks methods that the scheduler calls unconditionally",
        remove_when="SGLang lets a plugin subclass the worker of a built-in algorithm",
    ),
    Hook(
        name="start-checks",
        target="sglang.srt.server_args.prepare_server_args",
        kind="after",
        make=_refuse_bad_start,
        symptom="a drafter that does not fit fails minutes later with a shape error",
        cause="SGLang loads the drafter after the target and checks nothing before",
        remove_when="SGLang validates drafter against target when it parses its arguments",
    ),
    Hook(
        name="seeds",
        target="sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch",
        kind="after",
        make=_carry_seeds,
        symptom="a request's seed is ignored: the same seed gives other tokens",
        cause="SGLang reads seeds only with --enable-deterministic-inference, and then gives "
        "42 to every request without one",
        remove_when="SGLang honours a seed wherever one is given",
    ),
    Hook(
        name="seeded-min-p",
        target="sglang.srt.layers.sampler.top_k_top_p_min_p_sampling_from_probs_torch",
        kind="around",
        make=_filter_min_p_first,
        symptom="AssertionError in the scheduler when a seeded request uses min_p",
        cause="SGLang's seeded sampler asserts that min-p is off",
        remove_when="it applies min-p itself",
    ),
    *TREE_HOOKS,
)

_TRITON_ONLY = "SGLang launches it as a Triton kernel on every device but its own CPU engine"
_PLATFORM_SEAM = "SGLang's platform interface offers a seam for it"

PORTABLE_HOOKS = (
    *TREE_HOOKS,
    *(
        Hook(
            name=name.removesuffix("_func").replace("_", "-"),
            target=f"{module}.{name}",
            kind="replace",
            make=_index_op(name),
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
            make=_sampling_op(name),
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
        make=_fork_children,
        symptom="a server on a laptop needs a minute and a half to start",
        cause="each of SGLang's processes is spawned and imports everything again",
        remove_when="SGLang's imports take seconds, or it forks where that is safe",
    ),
    Hook(
        name="murmur-hash",
        target="sglang.kernels.ops.sampling.murmur_hash.murmur_hash32",
        kind="replace",
        make=_murmur_hash,
        symptom="ImportError of sgl_kernel when a seeded request is sampled",
        cause="on a CPU SGLang hashes with a compiled kernel that needs libcuda to load",
        remove_when="SGLang hashes in PyTorch where its kernel cannot load",
    ),
    Hook(
        name="softcap-logits",
        target="sglang.kernels.ops.activation.softcap.softcap_inplace_logits",
        kind="replace",
        make=_softcap_logits,
        symptom="Triton finds no active driver at the first prefill of a Gemma 2",
        cause=_TRITON_ONLY,
        remove_when=_PLATFORM_SEAM,
    ),
    Hook(
        name="aligned-heads",
        target="sglang.srt.configs.update_config.adjust_config_with_unaligned_cpu_tp",
        kind="around",
        make=_adjust_heads,
        symptom="shape mismatch in the KV pool for a Qwen2 whose head_dim is not hidden / heads",
        cause="on a CPU SGLang marks every config as padded, and Qwen2 then derives head_dim",
        remove_when="SGLang marks only configs that it really padded",
    ),
    Hook(
        name="draft-decode-backend",
        target="sglang.srt.speculative.draft_utils.DraftBackendFactory.create_decode_backend",
        kind="around",
        make=_decode_backend,
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
        make=_draft_extend_backend,
        symptom="ValueError 'EAGLE is not supported in attention backend portable'",
        cause="the factory's map of backends is fixed",
        remove_when=_PLATFORM_SEAM,
    ),
)


def hooks_for(*, enabled: bool, portable: bool) -> tuple[Hook, ...]:
    """The hooks this process needs: each target once."""
    wanted = (RESPEC_HOOKS if enabled else ()) + (PORTABLE_HOOKS if portable else ())
    return tuple({hook.target: hook for hook in wanted}.values())
