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
from sglang.srt.speculative.eagle_utils import get_draft_input_from_target_hidden_dim
from sglang.srt.speculative.eagle_worker_v2 import EAGLEWorkerV2
from sglang.srt.speculative.spec_utils import draft_tp_context

from sglang_respec.config import load_config
from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.policies import SGLANG_ADAPTIVE, make_policy, parse_configs
from sglang_respec.upstream.plain_tier import decode_plainly
from sglang_respec.upstream.planning import Planning
from sglang_respec.upstream.tap import HiddenTap

from sglang_respec.upstream.sampling.request_table import request_table

logger = logging.getLogger(__name__)


class RespecWorker(EAGLEWorkerV2):
    """Takes the place of `EAGLEWorkerV2` for `--speculative-algorithm EAGLE3`.

    A decode step is planned first. It is plain, or it is SGLang's round (draft, verify,
    draft-extend) in one of the shapes held ready, after the drafter has caught up with what was
    decoded without it.
    """

    planning: Planning | None = None  # None: every step is SGLang's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config = load_config()
        self._last_was_plain = False
        if self.config.policy != SGLANG_ADAPTIVE:
            own = SpeculationConfig(
                self.speculative_num_steps, self.topk, self.speculative_num_draft_tokens
            )
            policy = make_policy(self.config.policy, (own, *parse_configs(self.config.configs)))
            self.planning = Planning(policy, self.config.step_log)
            self.draft_worker.put_off = not self.planning.speculates
        logger.info("respec: RespecWorker serves EAGLE3, policy %s.", self.config.policy)

    def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        super().alloc_memory_pool(*args, **kwargs)
        if self.planning is not None and self.planning.switches_plain:
            self.draft_worker.tap = self._make_tap()

    def _make_tap(self) -> HiddenTap:
        runner = self.target_worker.model_runner
        width = get_draft_input_from_target_hidden_dim(self.draft_worker.draft_runner)
        rows = self.req_to_token_pool.req_to_token.shape[0]
        tap = HiddenTap(rows, self.config.tap_window, width, runner.dtype, self.device)
        logger.info(
            "respec: hidden states of %d tokens for each of %d requests take %.1f MiB.",
            tap.window, rows, tap.ring_bytes / 2**20,
        )  # fmt: skip
        return tap

    def forward_batch_generation(
        self,
        batch: Any,
        on_publish: Any = None,
        grammar_barrier: Any = None,
        pp_proxy_tensors: Any = None,
    ) -> Any:
        planning, tap = self.planning, self.draft_worker.tap
        mode = batch.forward_mode
        prefill = mode.is_extend() or batch.is_extend_in_batch
        if planning is not None and prefill:
            planning.interrupted()
        if planning is None or prefill or mode.is_idle():
            return super().forward_batch_generation(
                batch, on_publish, grammar_barrier, pp_proxy_tensors
            )
        slots = batch.req_pool_indices_cpu.numpy()
        plan = planning.plan(batch, 0 if tap is None else int(tap.kept(slots).sum()))
        self._last_was_plain = plan.config == PLAIN
        if plan.config == PLAIN:
            return self._decode_plainly(batch, slots, on_publish, grammar_barrier)
        self._warm_up(batch, slots)
        return super().forward_batch_generation(
            batch, on_publish, grammar_barrier, pp_proxy_tensors
        )

    def _decode_plainly(
        self, batch: Any, slots: np.ndarray, on_publish: Any, grammar_barrier: Any
    ) -> Any:
        tap = self.draft_worker.tap
        if tap is not None and self.config.tap_overflow == "catch_up":
            self._catch_up(batch, np.flatnonzero(tap.full(slots)))
        positions = batch.seq_lens
        capture = CaptureHiddenMode.NULL if tap is None else CaptureHiddenMode.FULL
        result = decode_plainly(batch, self.target_worker, capture, on_publish, grammar_barrier)
        if tap is not None:
            tap.write_step(
                slots,
                batch.req_pool_indices,
                positions,
                result.logits_output.hidden_states,
                result.next_token_ids.to(torch.int64),
            )
        result.next_draft_input = self.draft_worker.cold_input(result.next_token_ids)
        return result

    def _warm_up(self, batch: Any, slots: np.ndarray) -> None:
        """Before a draft: whoever is behind catches up, and gets its candidates."""
        tap = self.draft_worker.tap
        if tap is None:
            return
        rows = np.flatnonzero(tap.gap[slots])
        found = self._catch_up(batch, rows)
        if found is None:
            return
        drafts = batch.spec_info
        index = torch.from_numpy(rows).to(batch.seq_lens.device)
        drafts.topk_p = drafts.topk_p.index_copy(0, index, found.topk_p)
        drafts.topk_index = drafts.topk_index.index_copy(0, index, found.topk_index)
        drafts.hidden_states = drafts.hidden_states.index_copy(0, index, found.hidden_states)

    def _catch_up(self, batch: Any, rows: np.ndarray) -> Any:
        """SGLang's draft input of these rows; None if there are none."""
        if not rows.size:
            return None
        lens = batch.seq_lens.cpu() if batch.seq_lens_cpu is None else batch.seq_lens_cpu
        assert self.planning is not None
        with self._drafter_context(), self.planning.catching_up():
            return self.draft_worker.catch_up(batch, rows, lens.numpy()[rows])

    @contextmanager
    def _drafter_context(self) -> Iterator[None]:
        """What SGLang enters around every forward of the drafter."""
        with (
            draft_tp_context(self.draft_worker.parallel_layout),
            speculative_moe_backend_context(),
            speculative_moe_a2a_backend_context(),
        ):
            yield

    def on_verify_complete_cpu(
        self, num_correct_drafts_per_req: list[int], batch_size: int = 0
    ) -> None:
        super().on_verify_complete_cpu(num_correct_drafts_per_req, batch_size)
        if self.planning is not None:
            self.planning.finished(num_correct_drafts_per_req)
            self.draft_worker.put_off = self.planning.plain_now and (
                self.draft_worker.tap is None or self.config.plain_prefill == "tap"
            )

    @property
    def last_shared_read_runner(self) -> Any:
        """Whose forward was the step's last: the target's, where the drafter did not run."""
        if self._last_was_plain:
            return self.target_worker.model_runner
        return super().last_shared_read_runner
