"""The scheduler's side of drafter swaps: one handler, run between two steps on every rank.

Whatever it is sent, it answers: an exception here would end the server.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from sglang.srt.constants import GPU_MEMORY_TYPE_WEIGHTS
from sglang.srt.runtime_context import get_observability, get_parallel

from sglang_respec.config import load_config
from sglang_respec.drafter.group import GroupAddress, receive
from sglang_respec.drafter.guard import GuardPolicy
from sglang_respec.drafter.reader import read_layout
from sglang_respec.drafter.stage import Weights, stage, tensors_of_file
from sglang_respec.drafter.swap import Commit, DrafterSwap
from sglang_respec.errors import RespecError
from sglang_respec.upstream.drafter_ipc import (
    DrafterReqInput,
    DrafterReqOutput,
    DrafterVerdictReqOutput,
)
from sglang_respec.upstream.drafter_schema import drafter_schema, live_drafter
from sglang_respec.upstream.drafter_spans import mark_swap

logger = logging.getLogger(__name__)

COMPLAINT_BYTES = 512  # of the rank that failed, as the others are told


def attach_to_scheduler(_: None, scheduler: Any) -> None:
    """Runs after SGLang has made its dispatcher; adds our operations to it."""
    control = DrafterControl(scheduler)
    scheduler._request_dispatcher._mapping[DrafterReqInput] = control.handle
    if _has_drafter(scheduler):
        scheduler.draft_worker.drafter_feed = control.record


def _has_drafter(scheduler: Any) -> bool:
    return scheduler.draft_worker is not None and bool(scheduler.spec_algorithm.is_eagle3())


class DrafterControl:
    """The operations, each a method `_on_<operation>` that answers a table."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._operations: dict[str, Callable[..., dict[str, Any]]] = {
            "schema": self._on_schema,
            "state": self._on_state,
            "earlier": self._on_earlier,
            "stage": self._on_stage,
            "restore": self._on_restore,
            "commit": self._on_commit,
            "discard": self._on_discard,
        }

    def handle(self, request: DrafterReqInput) -> DrafterReqOutput:
        """Run one operation. The errors named are what a wrong argument can cause; they are the
        same on every rank, since the arguments are."""
        try:
            body = self._operations[request.operation](**request.arguments)
        except (RespecError, LookupError, TypeError, ValueError) as error:
            logger.warning("respec: %s refused: %s", request.operation, error)
            return DrafterReqOutput(ok=False, body={"error": str(error)})
        return DrafterReqOutput(ok=True, body=body)

    def record(self, correct_drafts: list[int], shape: str) -> None:
        """One verify step: how many drafts of each request the target accepted, in which shape."""
        swap = self._swap
        if swap.record(sum(correct_drafts), len(correct_drafts), shape) == "worse":
            logger.warning("respec: drafter version %d is worse; see GET /drafter.",
                           swap.serving.number)  # fmt: skip
            self._scheduler.ipc_channels.send_to_tokenizer.send_output(
                DrafterVerdictReqOutput(
                    version=swap.serving.number, fallback=swap.guard.fallback
                )
            )  # fmt: skip
        if self._metrics is not None:
            self._metrics.record(swap.serving.number, correct_drafts)

    @cached_property
    def _swap(self) -> DrafterSwap:
        config = load_config()
        return DrafterSwap(
            live_drafter(self._worker),
            label=str(self._scheduler.server_args.speculative_draft_model_path),
            keep=config.drafter_versions,
            guard=GuardPolicy(config.drafter_guard_verifies, config.drafter_guard_ratio),
            now=time.time(),
        )

    @cached_property
    def _metrics(self) -> Any:
        if not get_observability().enable_metrics or get_parallel().tp_rank != 0:
            return None
        from sglang_respec.upstream.drafter_metrics import AcceptanceMetrics

        return AcceptanceMetrics()

    @property
    def _worker(self) -> Any:
        worker = self._scheduler.draft_worker
        if not _has_drafter(self._scheduler):
            raise RespecError(
                "This server has no EAGLE-3 drafter; start it with --drafter-path to push one."
            )
        return worker

    def _on_schema(self) -> dict[str, Any]:
        vocab_size = self._worker.target_worker.model_config.vocab_size
        return drafter_schema(self._swap.live, vocab_size).to_dict()

    def _on_state(self) -> dict[str, Any]:
        return self._swap.state()

    def _on_earlier(self) -> dict[str, Any]:
        return {"number": self._swap.history.before_serving()}

    def _on_stage(
        self,
        push: str,
        take: list[str],
        path: str = "",
        group: dict[str, Any] | None = None,
        tensors: list[list[Any]] | None = None,
    ) -> dict[str, Any]:
        """Start to stage a file, or what a trainer is about to broadcast."""
        self._refuse_offloaded()
        live = self._swap.live
        if group is None:

            def source() -> Weights:
                return stage(live, tensors_of_file(path, read_layout(path), take))
        else:
            place, rank = GroupAddress(**group), 1 + get_parallel().tp_rank
            if place.world_size != 1 + get_parallel().tp_size:
                raise RespecError(
                    f"The group has {place.world_size} members and needs "
                    f"{1 + get_parallel().tp_size}: the trainer and each tensor-parallel rank."
                )
            declared = [(name, dtype, tuple(shape)) for name, dtype, shape in tensors or []]
            wanted = set(take)

            def source() -> Weights:
                sent = receive(place, rank, declared, live.device)
                return stage(live, (each for each in sent if each[0] in wanted))

        self._swap.begin(push, source)
        return {"status": "staging"}

    def _on_restore(self, push: str, number: int) -> dict[str, Any]:
        self._refuse_offloaded()
        self._swap.begin_restore(push, number)
        return {"status": "staging"}

    def _on_discard(self, push: str) -> dict[str, Any]:
        self._swap.discard(push)
        return {"status": "discarded"}

    def _on_commit(self, guard: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
        request = Commit(**fields, guard=GuardPolicy(*guard) if guard else None)
        self._refuse_offloaded()
        swap, scheduler = self._swap, self._scheduler
        old = swap.serving.number
        # With overlap the last step may still run on this stream; the copies come after it and
        # before the next one.
        answer = swap.commit(
            request,
            vote=_vote,
            stream=scheduler.forward_stream_ctx,
            before_write=lambda: mark_swap(scheduler, old),
        )
        if answer["status"] == "committed":
            scheduler.output_streamer.drafter_version = answer["version"]
            scheduler.draft_worker.drafter_swapped(answer["version"])
            logger.info("respec: drafter version %d serves (%s).", answer["version"],
                        request.label or request.origin)  # fmt: skip
        return answer

    def _refuse_offloaded(self) -> None:
        """Between release and resume of the weights their memory is not there to be written."""
        if GPU_MEMORY_TYPE_WEIGHTS in self._scheduler.weight_updater.offload_tags:
            raise RespecError(
                "The server's weights are released; push after /resume_memory_occupation."
            )


def _vote(readiness: int, complaint: str) -> tuple[int, str]:
    """The least readiness of all tensor-parallel ranks, and what the lowest of those ranks says."""
    group = get_parallel().tp_group
    if group.world_size == 1:
        return readiness, complaint
    message = complaint.encode()[:COMPLAINT_BYTES].ljust(COMPLAINT_BYTES)
    mine = torch.frombuffer(bytearray(bytes([readiness]) + message), dtype=torch.uint8)
    everyone = [torch.empty_like(mine) for _ in range(group.world_size)]
    torch.distributed.all_gather(everyone, mine, group=group.cpu_group)
    least = min(everyone, key=lambda each: int(each[0]))
    text = bytes(least[1:].tolist()).decode(errors="replace").strip()
    return int(least[0]), text


def streamer_with_spans(_: type, scheduler: Any) -> type | None:
    """Where there is a drafter, responses say which version served them."""
    return scheduler.draft_worker.streamer_class() if _has_drafter(scheduler) else None
