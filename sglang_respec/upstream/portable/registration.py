"""Makes the portable attention backend known to SGLang by name."""

from typing import Any

from sglang.srt.arg_groups.choices import (
    add_attention_backend_choices,
    add_draft_attention_backend_choices,
)
from sglang.srt.layers.attention.attention_registry import register_attention_backend


def register_backend() -> None:
    add_attention_backend_choices(["portable"])
    add_draft_attention_backend_choices(["portable"])

    @register_attention_backend("portable")
    def create(runner: Any) -> Any:
        from sglang_respec.upstream.portable.attention import PortableAttnBackend

        return PortableAttnBackend(runner)
