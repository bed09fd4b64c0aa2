"""KV slots for decode steps: reserved when a request runs short of them, not in every step.

Before each decode step SGLang tops every request up to twice the slots of one round: twice because,
with overlapped scheduling, the host does not know yet how far the last round got. Without overlap
it knows, the slots of one round are enough, and what a request already owns lasts for several plain
steps. Never more is reserved than SGLang would have reserved.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from sglang.srt.mem_cache.allocation_sizing import get_alloc_len_per_decode


def reserve_when_short(original: Callable[[Any], None], batch: Any) -> None:
    """Around `eagle_prepare_for_decode`; batch: SGLang's ScheduleBatch."""
    lengths_unknown = batch.enable_overlap or batch.seq_lens_cpu is None
    if lengths_unknown or _short(batch.reqs, _round_slots()):
        original(batch)
        return
    # What else SGLang does there, but for penalties, which are counted by this project's table.
    batch.maybe_evict_swa()
    for request in batch.reqs:
        request.decode_batch_idx += 1


@cache
def _round_slots() -> int:
    """What one round may write after the committed tokens; settled when the server starts."""
    slots: int = get_alloc_len_per_decode()
    return slots


def _short(requests: list[Any], round_slots: int) -> bool:
    """Whether one of them owns fewer slots after its committed tokens than a round may write."""
    return any(
        kv.kv_allocated_len - kv.kv_committed_len < round_slots
        for kv in (request.kv for request in requests)
    )
