"""Every replacement made in SGLang: one row each, with symptom, cause and removal condition.

Two groups. `RESPEC_HOOKS` are the product and apply on every device unless
`SGLANG_RESPEC=0`. `PORTABLE_HOOKS` fill what SGLang lacks on a machine with no GPU and
apply there always, since stock SGLang could not serve at all without them.
"""

from typing import Any

from sglang_respec.config import load_config
from sglang_respec.upstream.drafter_hooks import DRAFTER_HOOKS
from sglang_respec.upstream.hook_table import Hook
from sglang_respec.upstream.portable.hooks import PORTABLE_HOOKS
from sglang_respec.upstream.sampling.hooks import SAMPLING_HOOKS

SPEC_TREE = "sglang.kernels.ops.speculative.spec_tree"


def _worker() -> Any:
    """The class that the settings ask for: one that collects is used where rollouts go somewhere,
    so that the others pay nothing."""
    if load_config().samples_to:
        from sglang_respec.upstream.collecting import CollectingWorker

        return CollectingWorker
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


TREE_HOOKS = (
    Hook(
        name="build-tree",
        target=f"{SPEC_TREE}.build_tree_kernel_efficient_func",
        kind="replace",
        replacement=_build_tree,
        symptom="without a GPU: NotImplementedError 'EAGLE tree construction'",
        cause="SGLang builds trees with a CUDA kernel compiled at run time",
        remove_when="never: the tree kernels are this project's own on every device",
    ),
    Hook(
        name="verify-tree",
        target=f"{SPEC_TREE}.verify_tree_greedy_func",
        kind="replace",
        replacement=_verify_tree,
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
        replacement=_worker,
        symptom="a new algorithm name loses branches on ('EAGLE', 'EAGLE3') all over SGLang",
        cause="CustomSpecAlgo lacks methods that the scheduler calls unconditionally",
        remove_when="SGLang lets a plugin subclass the worker of a built-in algorithm",
    ),
    Hook(
        name="start-checks",
        target="sglang.srt.server_args.prepare_server_args",
        kind="after",
        replacement="sglang_respec.upstream.start_checks:refuse_bad_start",
        symptom="a drafter that does not fit fails minutes later with a shape error",
        cause="SGLang loads the drafter after the target and checks nothing before",
        remove_when="SGLang validates drafter against target when it parses its arguments",
    ),
    *SAMPLING_HOOKS,
    *DRAFTER_HOOKS,
    *TREE_HOOKS,
)


def hooks_for(*, enabled: bool, portable: bool) -> tuple[Hook, ...]:
    """The hooks this process needs: each target once."""
    wanted = (RESPEC_HOOKS if enabled else ()) + (
        (*TREE_HOOKS, *PORTABLE_HOOKS) if portable else ()
    )
    return tuple({hook.target: hook for hook in wanted}.values())
