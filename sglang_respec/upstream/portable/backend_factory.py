"""Draft attention backends of the portable platform, entered through SGLang's factory."""

from collections.abc import Callable
from typing import Any

from sglang.srt.runtime_context import attention_backends

from sglang_respec.upstream.portable.attention import (
    PORTABLE_BACKEND,
    PortableAttnBackend,
    PortableMultiStepDraftBackend,
)


def _is_portable(factory: Any) -> bool:
    chosen = factory.draft_attn_backend or attention_backends()[1]
    return bool(chosen == PORTABLE_BACKEND)


def _stamped(backend: Any) -> Any:
    backend.prefill_attention_backend_str = PORTABLE_BACKEND
    backend.decode_attention_backend_str = PORTABLE_BACKEND
    return backend


def create_decode_backend(original: Callable[[Any], Any], factory: Any) -> Any:
    """Multi-step drafting backend; None for one step, which drafts from the extend."""
    if not _is_portable(factory):
        return original(factory)
    if factory.speculative_num_steps <= 1:
        return None
    backend = PortableMultiStepDraftBackend(
        factory.draft_model_runner, factory.topk, factory.speculative_num_steps
    )
    for step_backend in backend.attn_backends:
        _stamped(step_backend)
    return _stamped(backend)


def create_draft_extend_backend(original: Callable[[Any], Any], factory: Any) -> Any:
    if not _is_portable(factory):
        return original(factory)
    return _stamped(PortableAttnBackend(factory.draft_model_runner))
