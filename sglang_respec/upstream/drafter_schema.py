"""The serving drafter, looked at: which checkpoint tensors its parameters are made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sglang.srt.layers.linear import LinearBase, MergedColumnParallelLinear, QKVParallelLinear
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from torch import nn

from sglang_respec.drafter.schema import D2T, DrafterSchema, Slot, canonical
from sglang_respec.drafter.stage import LiveDrafter, own_parameters
from sglang_respec.errors import RespecError

SAFETENSORS_TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
# The checkpoint's parts of a stacked parameter; a drafter's `load_weights` has the same table.
QKV_PARTS = ("q_proj", "k_proj", "v_proj")
MERGED_PARTS = ("gate_proj", "up_proj")


def live_drafter(worker: Any) -> LiveDrafter:
    """What a push to this worker's drafter may write. Raises `RespecError` if it cannot be pushed.

    worker: `EAGLEWorkerV2` after its pools are allocated, which is when the target's embedding has
    taken the place of the drafter's.
    """
    drafter = worker.draft_worker
    model, target = drafter.draft_runner.model, worker.target_worker.model_runner.model
    own = own_parameters(model, target)
    odd = sorted(name for name, each in own.items() if each.dtype not in SAFETENSORS_TYPES)
    if odd:
        raise RespecError(
            f"The serving drafter is quantized ({odd[0]}), and only drafters in float32, float16 "
            "or bfloat16 can be pushed; restart with one."
        )
    return LiveDrafter(model, own, drafter.hot_token_id)


def drafter_schema(live: LiveDrafter, vocab_size: int) -> DrafterSchema:
    """The checkpoint tensors of the serving drafter, whole, however it is split over ranks."""
    slots = list(_slots(live))
    if live.token_map is not None:
        slots.append(Slot(D2T, (live.token_map.shape[0],), "I64", "map"))
    return DrafterSchema(tuple(slots), vocab_size)


def _slots(live: LiveDrafter) -> Iterator[Slot]:
    modules = dict(live.model.named_modules())
    for name, parameter in live.model.named_parameters():
        owner_name, _, kind = name.rpartition(".")
        role = "weight" if name in live.own else "shared"
        dtype = SAFETENSORS_TYPES.get(parameter.dtype, str(parameter.dtype))
        for part, shape in _parts(modules[owner_name], owner_name, kind, parameter):
            yield Slot(canonical(part), shape, dtype, role)  # type: ignore[arg-type]


def _parts(
    owner: nn.Module, name: str, kind: str, parameter: nn.Parameter
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Checkpoint names and whole shapes of one parameter."""
    names: tuple[str, ...]
    rows: tuple[int, ...]
    if isinstance(owner, QKVParallelLinear):
        heads, kv_heads = owner.total_num_heads, owner.total_num_kv_heads
        rows = (heads * owner.head_size, kv_heads * owner.head_size, kv_heads * owner.v_head_size)
        names = QKV_PARTS
    elif isinstance(owner, MergedColumnParallelLinear):
        rows, names = tuple(owner.output_sizes), MERGED_PARTS
    elif isinstance(owner, VocabParallelEmbedding):
        yield f"{name}.{kind}", (owner.org_vocab_size, *parameter.shape[1:])
        return
    elif isinstance(owner, LinearBase):
        whole = (owner.output_size, owner.input_size) if kind == "weight" else (owner.output_size,)
        yield f"{name}.{kind}", whole
        return
    else:
        yield f"{name}.{kind}", tuple(parameter.shape)
        return
    parent = name.rpartition(".")[0]
    for part, count in zip(names, rows, strict=True):
        whole = (count, owner.input_size) if kind == "weight" else (count,)
        yield f"{parent}.{part}.{kind}", whole
