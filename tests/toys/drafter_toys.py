"""A drafter of a few numbers with the traits of SGLang's, and an engine of it without SGLang.

Everything but the engine's scheduler loop is the product's: schema, reader, staging, votes, commit,
guard, history.
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from sglang_respec.drafter.guard import GuardPolicy
from sglang_respec.drafter.pace import Pace
from sglang_respec.drafter.reader import ITEM_BYTES, read_layout
from sglang_respec.drafter.schema import DrafterSchema, Slot
from sglang_respec.drafter.stage import (
    LiveDrafter,
    Weights,
    own_parameters,
    stage,
    tensors_of_file,
)
from sglang_respec.drafter.swap import Commit, DrafterSwap

HIDDEN, HEADS, DRAFT_VOCAB, VOCAB = 4, 4, 6, 10
SLOTS = (
    Slot("embed_tokens.weight", (VOCAB, HIDDEN), "F32", "shared"),
    Slot("layers.0.self_attn.q_proj.weight", (HEADS, HIDDEN), "F32"),
    Slot("layers.0.self_attn.k_proj.weight", (HEADS, HIDDEN), "F32"),
    Slot("layers.0.self_attn.v_proj.weight", (HEADS, HIDDEN), "F32"),
    Slot("norm.weight", (HIDDEN,), "F32"),
    Slot("lm_head.weight", (DRAFT_VOCAB, HIDDEN), "F32"),
    Slot("d2t", (DRAFT_VOCAB,), "I64", "map"),
)
SCHEMA = DrafterSchema(SLOTS, VOCAB)
OFFSETS = [draft_id // 2 for draft_id in range(DRAFT_VOCAB)]  # d2t: target id - draft id
STACK = {"q_proj": 0, "k_proj": 1, "v_proj": 2}


class Target(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)


class Drafter(nn.Module):
    """q, k and v in one parameter, split over ranks; its embedding is the target's."""

    def __init__(self, target: Target, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        self.rank, self.rows = rank, HEADS // ranks
        self.hot_token_id: Tensor | None = None
        self.embed_tokens = nn.Module()
        self.embed_tokens.weight = target.embed_tokens.weight
        self.qkv_proj = nn.Parameter(torch.zeros(3 * self.rows, HIDDEN), requires_grad=False)
        self.norm = nn.Parameter(torch.zeros(HIDDEN), requires_grad=False)
        self.lm_head = nn.Parameter(torch.zeros(DRAFT_VOCAB, HIDDEN), requires_grad=False)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            short = name.removesuffix(".weight").rpartition(".")[2]
            if short == "d2t":
                self.hot_token_id = tensor + torch.arange(len(tensor))
            elif short in STACK:
                mine = tensor[self.rank * self.rows : (self.rank + 1) * self.rows]
                start = STACK[short] * self.rows
                parameters["qkv_proj"].data[start : start + self.rows].copy_(mine)
            elif short in parameters:
                parameters[short].data.copy_(tensor)


def make_live(rank: int = 0, ranks: int = 1) -> LiveDrafter:
    target = Target()
    drafter = Drafter(target, rank, ranks)
    return LiveDrafter(drafter, own_parameters(drafter, target), torch.arange(DRAFT_VOCAB))


def make_swap(rank: int = 0, ranks: int = 1, keep: int = 3) -> DrafterSwap:
    guard = GuardPolicy(100, 0.7)
    return DrafterSwap(make_live(rank, ranks), label="start", keep=keep, guard=guard, now=0.0)


def make_tensors(value: float, **changes: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """A push that fits, filled with one number: name -> type, shape, bytes. None drops a tensor."""
    tensors: dict[str, Any] = {}
    for slot in SLOTS:
        if slot.role == "weight":
            count = math.prod(slot.shape)
            tensors[slot.name] = ("F32", slot.shape, struct.pack(f"<{count}f", *[value] * count))
    tensors["d2t"] = ("I64", (DRAFT_VOCAB,), struct.pack(f"<{DRAFT_VOCAB}q", *OFFSETS))
    tensors.update(changes)
    return {name: each for name, each in tensors.items() if each is not None}


def make_file(value: float = 1.0, **changes: Any) -> bytes:
    return pack(make_tensors(value, **changes))


def pack(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file, written by hand so that it can be wrong."""
    header, body = {}, b""
    for name, (dtype, shape, blob) in tensors.items():
        offsets = [len(body), len(body) + len(blob)]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        body += blob
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def zeros(dtype: str, *shape: int) -> tuple[str, tuple[int, ...], bytes]:
    return dtype, shape, bytes(math.prod(shape) * ITEM_BYTES[dtype])


class LocalEngine:
    """A few ranks in this process, each a `DrafterSwap`; calls reach them one after another."""

    def __init__(self, ranks: int = 1, keep: int = 3) -> None:
        self._keep = keep
        self.swaps: list[DrafterSwap] = []
        self.before_staging: list[Callable[[int], None]] = []  # called with the rank, in its thread
        self.reset(ranks)
        self._threads = ThreadPoolExecutor(ranks)
        self._verdict: Callable[[int, int], None] = lambda version, fallback: None
        self._barrier = threading.Barrier(ranks)
        self._votes: list[tuple[int, str]] = [(0, "")] * ranks

    def reset(self, ranks: int) -> None:
        """The engine as it starts."""
        self.swaps = [make_swap(rank, ranks, self._keep) for rank in range(ranks)]
        self.before_staging.clear()

    def on_verdict(self, callback: Callable[[int, int], None]) -> None:
        self._verdict = callback

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        await asyncio.sleep(0)
        answers = self._on_every_rank(lambda rank: self._do(rank, operation, arguments))
        return answers[0]

    def verify(self, accepted_drafts: int, requests: int) -> None:
        """One verify step; must run on the event loop when a verdict is awaited."""
        verdicts = [swap.record(accepted_drafts, requests) for swap in self.swaps]
        if verdicts[0] == "worse":
            swap = self.swaps[0]
            self._verdict(swap.serving.number, swap.guard.fallback)

    def serving_value(self, rank: int = 0) -> set[float]:
        """Every number in the serving drafter's own parameters."""
        return {x for p in self.swaps[rank].live.own.values() for x in p.flatten().tolist()}

    def _do(self, rank: int, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        swap = self.swaps[rank]
        if operation == "schema":
            return SCHEMA.to_dict()
        if operation == "state":
            return swap.state()
        if operation == "earlier":
            return {"number": swap.history.before_serving()}
        if operation == "restore":
            swap.begin_restore(**arguments)
        elif operation == "stage":
            swap.begin(arguments["push"], lambda pace: self._stage(rank, arguments, pace))
        elif operation == "discard":
            swap.discard(**arguments)
        elif operation == "commit":
            request = {name: each for name, each in arguments.items() if name != "guard"}
            guard = arguments.get("guard")
            policy = GuardPolicy(*guard) if guard else None
            return swap.commit(
                Commit(**request, guard=policy),
                vote=lambda mine, text: self._vote(rank, mine, text),
            )
        return {"status": "staging"}

    def _stage(self, rank: int, arguments: dict[str, Any], pace: Pace) -> Weights:
        for each in self.before_staging:
            each(rank)
        path = arguments["path"]
        names = arguments["take"]
        tensors = tensors_of_file(path, read_layout(path), names, pace)
        return stage(self.swaps[rank].live, tensors, pace)

    def _vote(self, rank: int, mine: int, text: str) -> tuple[int, str]:
        self._votes[rank] = (mine, text)
        self._barrier.wait(30)
        return min(self._votes, key=lambda each: each[0])

    def _on_every_rank(self, do: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
        futures = [self._threads.submit(do, rank) for rank in range(len(self.swaps))]
        return [each.result(30) for each in futures]


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen in ten seconds")
