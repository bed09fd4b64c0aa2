"""Model shapes on a CPU: keep what the checkpoint says where no padding is needed."""

from collections.abc import Callable
from typing import Any


def adjust_only_when_unaligned(
    original: Callable[[Any, Any, int], Any], model_config: Any, load_config: Any, tp_size: int
) -> Any:
    """Skips SGLang's padding of head counts when the heads divide evenly already."""
    heads, kv_heads = model_config.num_attention_heads, model_config.get_total_num_kv_heads()
    if heads % tp_size == 0 and kv_heads % tp_size == 0:
        return model_config
    return original(model_config, load_config, tp_size)
