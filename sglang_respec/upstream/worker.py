"""The speculative worker of this extension, a subclass of SGLang's own."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sglang.srt.layers.moe.utils import (
    speculative_moe_a2a_backend_context,
    speculative_moe_backend_context,
)
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.runtime_context import get_parallel
from sglang.srt.speculative.eagle_utils import get_draft_input_from_target_hidden_dim
from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2
from sglang.srt.speculative.spec_utils import draft_tp_context
from sglang.srt.utils.common import async_d2h

from sglang_respec.config import load_config
from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.hidden_tap import HiddenTap, Ints
from sglang_respec.planner import Profile
from sglang_respec.policies import SGLANG_ADAPTIVE, PolicyChoice, parse_configs
from sglang_respec.upstream.drafter_feed import DrafterFeed
from sglang_respec.upstream.plain_tier import decode_plainly
from sglang_respec.upstream.planning import Planning
from sglang_respec.upstream.runtime_states import RuntimeStates
from sglang_respec.upstream.sampling.request_table import request_table

logger = logging.getLogger(__name__)


class RespecWorker(DrafterFeed, EAGLEWorkerV2):
    """Takes the place of `EAGLEWorkerV2` for `--speculative-algorithm EAGLE3`.

    A decode step is planned first. It is plain, or it is SGLang's round (draft, verify,
    draft-extend) in one of the shapes held ready, after the drafter has caught up with what was
    decoded without it. Drafting ranks by the target's noise (`sampling/drafting.py`);
    verification samples as plain decoding does (`sampling/verification.py`).
    """

    planning: Planning | None = None  # None: SGLang's adaptive mode decides
    states: RuntimeStates
    captures_plain_steps = False  # hidden states of plain steps, tap or not

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = load_config()
        self.choice = PolicyChoice.parse(self.settings.policy)
        self.own = SpeculationConfig(
            self.speculative_num_steps, self.topk, self.speculative_num_draft_tokens
        )
        self.ready = self.choice.ready(self.own, parse_configs(self.settings.configs))
        self.configs = self.choice.may_run(self.ready, bool(self.settings.profile))
        self.draft_worker.put_off = self.configs == (PLAIN,)
        self._plain_now = False
        logger.info("respec: RespecWorker serves EAGLE3.")

    def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        super().alloc_memory_pool(*args, **kwargs)
        if self.choice.name == SGLANG_ADAPTIVE:
            return
        path, slots = self.settings.profile, self.req_to_token_pool.req_to_token.shape[0]
        policy = self.choice.make(self.ready, Profile.load(path) if path else None)
        shared = _first_ranks if get_parallel().tp_size > 1 else None
        self.planning = Planning(policy, slots, self.settings.step_log, shared)
        if PLAIN in self.configs and len(self.configs) > 1:
            self.draft_worker.tap = self._make_tap(slots)

    def _make_tap(self, slots: int) -> HiddenTap:
        width = get_draft_input_from_target_hidden_dim(self.draft_worker.draft_runner)
        dtype = self.target_worker.model_runner.dtype
        tap = HiddenTap(slots, self.settings.tap_window, width, dtype, self.device)
        logger.info(
            "respec: the hidden states of %d tokens for each of %d requests take %.1f MiB.",
            tap.window,
            slots,
            tap.ring_bytes / 2**20,
        )
        return tap

    def init_cuda_graphs(self) -> None:
        super().init_cuda_graphs()
        if self.planning is None:
            return
        self.states = RuntimeStates(self, self.own)
        with self._drafter_context():
            self.states.build(self.configs)
        logger.info(
            "respec: policy %s over %s.", self.settings.policy, "; ".join(map(str, self.configs))
        )

    def forward_batch_generation(
        self,
        batch: Any,
        on_publish: Any = None,
        grammar_barrier: Any = None,
        pp_proxy_tensors: Any = None,
    ) -> Any:
        rest = (on_publish, grammar_barrier, pp_proxy_tensors)
        mode = batch.forward_mode
        if self.planning is None or mode.is_idle():
            return super().forward_batch_generation(batch, *rest)
        if mode.is_extend() or batch.is_extend_in_batch:
            self.planning.prefilling(batch)
            return super().forward_batch_generation(batch, *rest)

        config = self.planning.plan(batch, self._gap_tokens(batch)).config
        self._set_plain(config == PLAIN)
        self.states.activate(config)
        if config == PLAIN:
            return self._decode_plainly(batch, on_publish, grammar_barrier)
        self._warm_up(batch)
        result = super().forward_batch_generation(batch, *rest)
        self._count_ranks(config, result)
        return result

    def _gap_tokens(self, batch: Any) -> int:
        tap = self.draft_worker.tap
        return 0 if tap is None else int(tap.kept(batch.req_pool_indices_cpu.numpy()).sum())

    def _set_plain(self, plain: bool) -> None:
        self._plain_now = plain
        self.draft_worker.put_off = plain and (
            self.draft_worker.tap is None or self.settings.plain_prefill == "tap"
        )

    def _decode_plainly(self, batch: Any, on_publish: Any, grammar_barrier: Any) -> Any:
        tap, slots = self.draft_worker.tap, batch.req_pool_indices_cpu.numpy()
        if tap is not None and self.settings.tap_overflow == "catch_up":
            self._catch_up(batch, np.flatnonzero(tap.full(slots)))
        positions = batch.seq_lens
        captured = tap is not None or self.captures_plain_steps
        capture = CaptureHiddenMode.FULL if captured else CaptureHiddenMode.NULL
        result = decode_plainly(batch, self.target_worker, capture, on_publish, grammar_barrier)
        tokens = result.next_token_ids.to(torch.int64).clamp(min=0)  # -1 marks a failed request
        if tap is not None:
            hidden = result.logits_output.hidden_states
            tap.write_step(slots, batch.req_pool_indices, positions, hidden, tokens)
        result.next_draft_input = self.draft_worker.cold_input(tokens)
        return result

    def _warm_up(self, batch: Any) -> None:
        """Before a draft: whoever is behind catches up, and gets its candidates."""
        tap = self.draft_worker.tap
        if tap is None:
            return
        rows = np.flatnonzero(tap.gap[batch.req_pool_indices_cpu.numpy()])
        found = self._catch_up(batch, rows)
        if found is None:
            return
        drafts = batch.spec_info
        index = torch.from_numpy(rows).to(batch.seq_lens.device)
        drafts.topk_p = drafts.topk_p.index_copy(0, index, found.topk_p)
        drafts.topk_index = drafts.topk_index.index_copy(0, index, found.topk_index)
        drafts.hidden_states = drafts.hidden_states.index_copy(0, index, found.hidden_states)

    def _catch_up(self, batch: Any, rows: Ints) -> Any:
        """SGLang's draft input of these rows; None if there are none."""
        if not rows.size:
            return None
        assert self.planning is not None
        lens = batch.seq_lens.cpu() if batch.seq_lens_cpu is None else batch.seq_lens_cpu
        slots = batch.req_pool_indices_cpu.numpy()[rows]
        tokens = int(self.draft_worker.tap.kept(slots).sum())
        with self._drafter_context(), self.planning.catching_up(tokens):
            return self.draft_worker.catch_up(batch, rows, lens.numpy()[rows])

    def _count_ranks(self, config: SpeculationConfig, result: Any) -> None:
        """Of a tree, on the device; what a chain shows is in its accepted lengths."""
        if config.topk == 1:
            return
        assert self.planning is not None
        counts = self.draft_worker.count_ranks(result, self.planning.classes)
        self.planning.counted(async_d2h(counts))

    @contextmanager
    def _drafter_context(self) -> Iterator[None]:
        """What SGLang enters around every forward of the drafter."""
        with (
            draft_tp_context(self.draft_worker.parallel_layout),
            speculative_moe_backend_context(),
            speculative_moe_a2a_backend_context(),
        ):
            yield

    def verify(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        batch.spec_info.respec_requests = request_table(self.target_worker.model_runner)
        result = super().verify(batch, *args, **kwargs)
        # -1 marks a failed request, and what follows embeds these tokens.
        result.next_draft_input.bonus_tokens.clamp_(min=0)
        if result.prepared_draft_extend_inputs is not None:
            result.prepared_draft_extend_inputs[2].clamp_(min=0)
        return result

    def on_verify_complete_cpu(
        self, num_correct_drafts_per_req: list[int], batch_size: int = 0
    ) -> None:
        super().on_verify_complete_cpu(num_correct_drafts_per_req, batch_size)
        config = self.own
        if self.planning is not None:
            config = self.planning.finished(num_correct_drafts_per_req).config
        if not config.is_plain:
            self.feed_drafter(num_correct_drafts_per_req, str(config))

    def drafter_swapped(self, version: int) -> None:
        if self.planning is not None:
            self.planning.drafter_swapped()

    @property
    def last_shared_read_runner(self) -> Any:
        """Whose forward was the step's last: the target's, where the drafter did not run."""
        if self._plain_now:
            return self.target_worker.model_runner
        return super().last_shared_read_runner


def _first_ranks(value: float) -> float:
    """Rank 0's value, on every rank of the tensor-parallel group."""
    group = get_parallel().tp_group
    told = torch.tensor([value], dtype=torch.float64)
    torch.distributed.broadcast(told, src=group.ranks[0], group=group.cpu_group)
    return float(told)
