"""The worker of a server that collects rollouts for the learner (`--respec-samples-to`).

It takes what the target's forwards computed anyway: hidden states and logits of committed tokens,
a few tensor operations per step for all collected requests together. Where nothing is collected
the class is not used at all; see `hooks.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sglang.srt.managers.auxiliary_output import append_auxiliary_output
from sglang.srt.managers.schedule_batch import FINISH_ABORT
from sglang.srt.runtime_context import get_observability, get_parallel
from sglang.srt.speculative.eagle_utils import get_draft_input_from_target_hidden_dim

from sglang_respec.config import RespecConfig
from sglang_respec.hidden_tap import Ints
from sglang_respec.learner.collect import FIRST_GUESS_TOKENS, Collector
from sglang_respec.learner.collect_channels import open_channel
from sglang_respec.learner.collect_choice import Chooser
from sglang_respec.learner.collect_outbox import Outbox, Sender
from sglang_respec.learner.collect_rollout import Finish, RowFormat
from sglang_respec.learner.collect_top import pack_top
from sglang_respec.upstream.collecting_requests import CollectedRequests, rollout_of
from sglang_respec.upstream.collecting_steps import DecodeRows, Destination, PrefillRows
from sglang_respec.upstream.drafter_spans import RespecOutputStreamer
from sglang_respec.upstream.sampling.request_table import request_table
from sglang_respec.upstream.worker import RespecWorker

logger = logging.getLogger(__name__)

MEGABYTE = 1_000_000


def start_collecting(settings: RespecConfig, row_format: RowFormat) -> Collector:
    """The collector that these settings ask for, with its threads running."""
    rate = settings.samples_mb_per_s * MEGABYTE
    outbox = Outbox(settings.samples_buffer_mb * MEGABYTE, *_observers())
    channel = open_channel(settings.samples_to, settings.samples_key, outbox.budget_bytes)
    first_guess = FIRST_GUESS_TOKENS * row_format.bytes_per_token
    chooser = Chooser(settings.samples_fraction, rate, first_guess, time.monotonic())
    collector = Collector(row_format, chooser, outbox, settings.samples_max_tokens)
    collector.start()
    Sender(outbox, channel, rate).start()
    return collector


def _observers() -> list[Callable[[str, int], None]]:
    if not get_observability().enable_metrics:
        return []
    from sglang_respec.upstream.collecting_metrics import CollectingMetrics

    return [CollectingMetrics().observe]


class CollectingWorker(RespecWorker):
    """`RespecWorker`, whose rank 0 collects. The other ranks hold the same rows and leave them."""

    captures_plain_steps = True  # on every rank alike
    destination: Destination | None = None
    drafter_version = policy_version = 0

    def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        super().alloc_memory_pool(*args, **kwargs)
        if get_parallel().tp_rank != 0:
            return
        runner = self.target_worker.model_runner
        self.row_format = RowFormat(
            runner.dtype,
            get_draft_input_from_target_hidden_dim(self.draft_worker.draft_runner),
            min(self.settings.samples_top_k, runner.model_config.vocab_size),
        )
        collector = start_collecting(self.settings, self.row_format)
        slots = self.req_to_token_pool.req_to_token.shape[0]
        self.destination = Destination(collector, CollectedRequests(slots, collector))
        logger.info(
            "respec: rollouts go to %s, %d bytes per token.",
            self.settings.samples_to,
            self.row_format.bytes_per_token,
        )

    def drafter_swapped(self, version: int) -> None:
        super().drafter_swapped(version)
        self.drafter_version = version

    def policy_updated(self) -> None:
        self.policy_version += 1

    def streamer_class(self) -> type[RespecOutputStreamer]:
        return collecting_streamer(self)

    def request_ended(self, request: Any) -> None:
        """A request is about to send its last tokens."""
        rollout = rollout_of(request)
        aborted = isinstance(request.finished_reason, FINISH_ABORT)
        if rollout is None or self.destination is None or aborted:
            return
        answer = request.output_ids[: request.finished_len]
        tokens = [*request.origin_input_ids, *answer]
        self.destination.collector.ended(
            rollout, Finish(tokens, self.drafter_version, self.policy_version)
        )

    def forward_batch_generation(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        to, mode = self.destination, batch.forward_mode
        prefill = mode.is_extend() or batch.is_extend_in_batch
        if to is None or not prefill or mode.is_idle():
            return super().forward_batch_generation(batch, *args, **kwargs)
        to.requests.enter(batch)
        taken = _Taken.of(to, batch)
        result = super().forward_batch_generation(batch, *args, **kwargs)
        if taken is not None:
            self._take_prefill(taken, batch, result)
        return result

    def verify(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().verify(batch, *args, **kwargs)
        taken = _Taken.of(self.destination, batch)
        if taken is not None:
            picked = taken.of_device(result.accept_index)  # [C, depth]
            width = picked.shape[1]
            # SGLang has moved the states of accepted nodes to the front, and not the logits.
            nodes = result.logits_output.hidden_states.shape[0] // len(batch.reqs)
            front = taken.device_rows[:, None] * nodes + torch.arange(
                width, device=picked.device
            )  # fmt: skip
            at = picked.long().clamp(min=0)  # past the last accepted node: -1
            self._take_decode(taken, result, batch, at.flatten(), front.flatten(), width)
        return result

    def _decode_plainly(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._decode_plainly(batch, *args, **kwargs)
        taken = _Taken.of(self.destination, batch)
        if taken is not None:
            self._take_decode(taken, result, batch, taken.device_rows, taken.device_rows, 1)
        return result

    def _take_decode(
        self,
        taken: _Taken,
        result: Any,
        batch: Any,
        logit_rows: torch.Tensor,  # [C * width] i64
        aux_rows: torch.Tensor,  # [C * width] i64
        width: int,
    ) -> None:
        output = result.logits_output
        divisors = self._divisors(taken, batch).repeat_interleave(width)
        top = self._top(output.next_token_logits.index_select(0, logit_rows), divisors)
        aux = output.hidden_states.index_select(0, aux_rows)
        _attach(output, DecodeRows(*taken.host, aux, top, width))

    def _take_prefill(self, taken: _Taken, batch: Any, result: Any) -> None:
        output = result.logits_output
        starts, lens, rows = _wanted_tokens(taken, batch)
        index = torch.from_numpy(rows).to(output.hidden_states.device, non_blocking=True)
        aux = output.hidden_states.index_select(0, index)
        logits = output.next_token_logits.index_select(0, taken.device_rows)
        top = self._top(logits, self._divisors(taken, batch))
        _attach(output, PrefillRows(*taken.host, aux, top, starts, lens))

    def _top(self, logits: torch.Tensor, divisors: torch.Tensor) -> torch.Tensor:
        return pack_top(logits, divisors, self.row_format.listed)

    def _divisors(self, taken: _Taken, batch: Any) -> torch.Tensor:
        """[C] f32 temperatures; of greedy requests 1, as the learner reads them."""
        table = request_table(self.target_worker.model_runner)
        slots = taken.of_device(batch.req_pool_indices).long()
        return torch.where(table.top_ks[slots] == 1, 1.0, table.temperatures[slots])


@dataclass(frozen=True)
class _Taken:
    """The collected requests of one batch, on the host and on the device."""

    host: tuple[Destination, Ints, Ints, list[Any]]  # where to, rows, slots, rollouts
    device_rows: torch.Tensor  # [C] i64
    everybody: bool

    @classmethod
    def of(cls, to: Destination | None, batch: Any) -> _Taken | None:
        """None if there are none, and then the step costs nothing more."""
        if to is None or batch.forward_mode.is_idle():
            return None
        slots = batch.req_pool_indices_cpu.numpy()
        rows = to.requests.rows(slots)
        if not rows.size or getattr(batch.sampling_info, "has_watermark_candidates", False):
            return None
        device = batch.req_pool_indices.device
        everybody = len(rows) == len(slots)
        device_rows = (
            torch.arange(len(rows), device=device)
            if everybody
            else torch.from_numpy(rows).to(device, non_blocking=True)
        )
        slots = slots[rows]
        return cls((to, rows, slots, to.requests.rollouts(slots)), device_rows, everybody)

    def of_device(self, values: torch.Tensor) -> torch.Tensor:
        """[B, ...] to [C, ...]."""
        return values if self.everybody else values.index_select(0, self.device_rows)


def _wanted_tokens(taken: _Taken, batch: Any) -> tuple[list[int], list[int], Ints]:
    """First positions [C] and numbers [C] of new tokens, and their rows [N] i64 in the batch."""
    _, rows, _, rollouts = taken.host
    extend_lens = np.asarray(batch.extend_lens, dtype=np.int64)
    offsets = np.cumsum(extend_lens) - extend_lens
    starts = [int(batch.prefix_lens[row]) for row in rows]
    lens = [
        max(0, min(int(extend_lens[row]), rollout.max_tokens - start))
        for row, start, rollout in zip(rows, starts, rollouts, strict=True)
    ]
    found = [np.arange(offsets[row], offsets[row] + n) for row, n in zip(rows, lens, strict=True)]
    return starts, lens, np.concatenate(found)


def _attach(logits_output: Any, rows: DecodeRows | PrefillRows) -> None:
    logits_output.auxiliary_device_output = append_auxiliary_output(
        logits_output.auxiliary_device_output, rows
    )


def collecting_streamer(worker: CollectingWorker) -> type[RespecOutputStreamer]:
    """SGLang's streamer, which tells this worker of requests that have ended."""

    class CollectingStreamer(RespecOutputStreamer):
        def build_additional_customized_info(self, reqs: list[Any]) -> dict[str, list[Any]]:
            for request in reqs:
                if request.finished():
                    worker.request_ended(request)
            return super().build_additional_customized_info(reqs)

    return CollectingStreamer
