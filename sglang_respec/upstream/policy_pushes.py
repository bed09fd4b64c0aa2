"""Policy pushes through SGLang's own weight endpoints: to the target alone, and never fatal.

SGLang sends new policy weights to target and drafter alike unless told otherwise, and two of its
four paths cannot be told. An EAGLE-3 drafter has parameters of the target's names, so that a push
lands in it without an error, and from then on nothing it drafts is accepted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec
import torch
from sglang.srt.managers.io_struct import (
    UpdateWeightFromDiskReqOutput,
    UpdateWeightsFromDistributedReqOutput,
    UpdateWeightsFromIPCReqOutput,
    UpdateWeightsFromTensorReqOutput,
)
from sglang.srt.utils.common import pickle as sglang_pickle

logger = logging.getLogger(__name__)

ANSWERS = {
    "disk": UpdateWeightFromDiskReqOutput,
    "distributed": UpdateWeightsFromDistributedReqOutput,
    "tensor": UpdateWeightsFromTensorReqOutput,
    "ipc": UpdateWeightsFromIPCReqOutput,
}
# Before these two answer, SGLang waits for every rank; a rank that failed must come too.
ENDS_IN_BARRIER = ("tensor", "ipc")

# What decoding and loading a stranger's tensors raises: SGLang's own unpickler, torch's view of
# wrong shapes and types, a model's weight loaders, and files or sockets that are not there.
PAYLOAD_ERRORS = (
    sglang_pickle.PickleError, ArithmeticError, AssertionError, AttributeError, BufferError,
    EOFError, ImportError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
    msgspec.MsgspecError,
)  # fmt: skip

_policy_push: ContextVar[bool] = ContextVar("respec_policy_push", default=False)


@contextmanager
def _target_only() -> Any:
    token = _policy_push.set(True)
    try:
        yield
    finally:
        _policy_push.reset(token)


def select_runners(
    original: Callable[..., Any], manager: Any, selector: str = "all"
) -> list[tuple[str, Any]]:
    """During a policy push `all`, SGLang's default, is the target. `draft` stays what it says."""
    if selector == "all" and _policy_push.get() and _drafter_is_separate(manager):
        selector = "target"
    runners: list[tuple[str, Any]] = original(manager, selector)
    return runners


def guarded_update(path: str) -> Callable[..., Any]:
    """Around one of SGLang's four updates: an exception becomes its answer, on every rank."""

    def update(original: Callable[..., Any], manager: Any, request: Any) -> Any:
        begun = manager._session is not None and manager._session.loaded_weights
        with _target_only():
            try:
                answer = original(manager, request)
            except PAYLOAD_ERRORS as error:
                logger.exception("respec: a policy push from %s failed.", path)
                answer = ANSWERS[path](success=False, message=_sentence(error))
                if path in ENDS_IN_BARRIER:
                    torch.distributed.barrier(group=manager.tp_cpu_group)
        answer = _agreed(answer, manager.tp_cpu_group)
        # What comes in pieces within one session is one policy.
        if answer.success and not begun and _changes_the_target(manager, request):
            manager.draft_worker.policy_updated()
        return answer

    return update


def _changes_the_target(manager: Any, request: Any) -> bool:
    return _drafter_is_separate(manager) and getattr(request, "selector", "all") != "draft"


def begin_session(original: Callable[..., Any], manager: Any, request: Any) -> Any:
    """A session opened for `all` prepares, and at its end completes, the target alone."""
    if request.selector == "all" and _drafter_is_separate(manager):
        request = msgspec.structs.replace(request, selector="target")
    return original(manager, request)


def _drafter_is_separate(manager: Any) -> bool:
    """An EAGLE-3 drafter is a model of its own; other algorithms draft with parts of the policy,
    which a policy push has to bring."""
    return bool(manager.scheduler.spec_algorithm.is_eagle3())


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return (
        f"The policy push failed ({text}); the target may hold part of it, so push the whole "
        "policy again."
    )


def _agreed(answer: Any, group: Any) -> Any:
    """Rank 0 answers for all, so it has to know whether another rank failed."""
    if torch.distributed.get_world_size(group) == 1:
        return answer
    success = torch.tensor([int(answer.success)])
    torch.distributed.all_reduce(success, torch.distributed.ReduceOp.MIN, group=group)
    if answer.success and not bool(success.item()):
        text = "Another tensor-parallel rank failed; push the whole policy again."
        return msgspec.structs.replace(answer, success=False, message=text)
    return answer
