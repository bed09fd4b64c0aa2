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
from sglang.srt.utils.common import async_d2h

from sglang_respec.config import load_config
from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.hidden_tap import HiddenTap, Ints
from sglang_respec.planner import Policy
from sglang_respec.policies import AUTO, SGLANG_ADAPTIVE, parse_configs
from sglang_respec.policy_checks import never_drafts, policy_of
from sglang_respec.refusals import options_of
from sglang_respec.upstream.adaptive import SglangChosen
from sglang_respec.upstream.auto_start import Preparation
from sglang_respec.upstream.drafter_feed import DrafterFeed
from sglang_respec.upstream.plain_tier import decode_plainly, embeddable, prefill_plainly
from sglang_respec.upstream.planning import Planning
from sglang_respec.upstream.probe import Guesses, probed_rows
from sglang_respec.upstream.rank_talk import RankTalk
from sglang_respec.upstream.runtime_states import RuntimeStates
from sglang_respec.upstream.sampling.request_table import request_table
from sglang_respec.upstream.stopping import refusals_stop_the_server

logger = logging.getLogger(__name__)


class RespecWorker(DrafterFeed, EAGLEWorkerV2):
    """Takes the place of `EAGLEWorkerV2` for `--speculative-algorithm EAGLE3`.

    A decode step is planned first. It is plain, or it is SGLang's round (draft, verify,
    draft-extend) in one of the shapes held ready, after the drafter has caught up with what was
    decoded without it. Drafting ranks by the target's noise (`sampling/drafting.py`);
    verification samples as plain decoding does (`sampling/verification.py`).
    """

    planning: Planning | None = None  # None: SGLang's adaptive mode decides
    _adaptive: Planning  # where SGLang decides: keeps the book all the same
    states: RuntimeStates
    captures_plain_steps = False  # hidden states of plain steps, tap or not

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = load_config()
        self.choice = policy_of(self.settings.policy, options_of(self.server_args))
        self.own = SpeculationConfig(
            self.speculative_num_steps, self.topk, self.speculative_num_draft_tokens
        )
        self.ready = self.choice.ready(self.own, parse_configs(self.settings.configs))
        self.configs = self.choice.may_run(self.ready)
        # The prefix cache is keyed by the same question; see `prefix_keys`.
        self.never_drafts = never_drafts(self.settings, options_of(self.server_args))
        self.draft_worker.put_off = self.never_drafts
        self.captures_nothing = self.never_drafts and not self.captures_plain_steps
        if self.captures_nothing:  # before SGLang makes attention backends, when it reads this
            self.target_worker.model_runner.spec_aux_config.eagle_use_aux_hidden_state = False
        self._plain_now = False
        logger.info("respec: RespecWorker serves EAGLE3.")

    def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        super().alloc_memory_pool(*args, **kwargs)
        slots = self.req_to_token_pool.req_to_token.shape[0]
        if self.choice.name == SGLANG_ADAPTIVE:
            self._adaptive = Planning(SglangChosen(self), slots, self.settings.step_log)
            return
        if self.choice.name != AUTO:  # which needs a profile first
            self._plan_by(self.choice.make(self.ready))
        if PLAIN in self.configs and len(self.configs) > 1:
            self.draft_worker.tap = self._make_tap(slots)

    def _plan_by(self, policy: Policy) -> None:
        talk, slots = RankTalk(), self.req_to_token_pool.req_to_token.shape[0]
        shared = talk.number if talk.size > 1 else None
        self.planning = Planning(policy, slots, self.settings.step_log, shared, self.configs)

    @property
    def watching(self) -> Planning:
        """Who knows what has run, whoever decides."""
        return self._adaptive if self.planning is None else self.planning

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
        if self.choice.name == SGLANG_ADAPTIVE:
            return
        self.states = RuntimeStates(self, self.own)
        if self.choice.name == AUTO:
            with refusals_stop_the_server():
                started = Preparation(self, self.states).run()
            self.configs = started.configs
            self._set_plain(False)
            self._plan_by(started.policy)
        else:
            self.states.build(self.configs)
        logger.info(
            "respec: policy %s over %s.", self.choice.name, "; ".join(map(str, self.configs))
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
        if mode.is_idle():
            return super().forward_batch_generation(batch, *rest)
        if mode.is_extend() or batch.is_extend_in_batch:
            self.watching.prefilling(batch)
            if self.captures_nothing:
                return self._prefill_plainly(batch, on_publish)
            return super().forward_batch_generation(batch, *rest)
        if self.planning is None:
            self.activate_step_by_batch(batch.seq_lens.shape[0])  # as SGLang is about to
            self.watching.plan(batch, gap_tokens=0)
            return super().forward_batch_generation(batch, *rest)

        plan = self.planning.plan(batch, self._gap_tokens(batch))
        config = plan.config
        self._set_plain(config.is_plain)
        self.states.activate(config)
        if config.is_plain:
            return self._decode_plainly(batch, plan.probe_tokens, on_publish, grammar_barrier)
        self._warm_up(batch, np.arange(len(batch.reqs)))
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

    def _prefill_plainly(self, batch: Any, on_publish: Any) -> Any:
        result = prefill_plainly(batch, self.target_worker, on_publish)
        result.next_draft_input = self.draft_worker.cold_input(embeddable(result.next_token_ids))
        return result

    def _decode_plainly(
        self, batch: Any, probe_tokens: int, on_publish: Any, grammar_barrier: Any
    ) -> Any:
        tap, slots = self.draft_worker.tap, batch.req_pool_indices_cpu.numpy()
        if tap is not None and self.settings.tap_overflow == "catch_up":
            self._catch_up(batch, np.flatnonzero(tap.full(slots)))
        guesses = self._guess(batch, probe_tokens)
        positions = batch.seq_lens
        captured = tap is not None or self.captures_plain_steps
        capture = CaptureHiddenMode.FULL if captured else None  # or what requests ask for
        result = decode_plainly(batch, self.target_worker, capture, on_publish, grammar_barrier)
        tokens = embeddable(result.next_token_ids)
        if tap is not None:
            hidden = result.logits_output.hidden_states
            tap.write_step(slots, batch.req_pool_indices, positions, hidden, tokens)
        if guesses is not None:
            assert self.planning is not None
            self.planning.counted(async_d2h(guesses.ranks(tokens, self.planning.classes)))
        result.next_draft_input = self.draft_worker.cold_input(tokens)
        return result

    def _guess(self, batch: Any, most: int) -> Guesses | None:
        """The drafter's candidates for the next token of so many requests; see `probe`."""
        tap = self.draft_worker.tap
        if tap is None or not most:
            return None
        assert self.planning is not None
        rows = probed_rows(tap.kept(batch.req_pool_indices_cpu.numpy()), most)
        self._warm_up(batch, rows)
        self.planning.probed(len(rows))
        return Guesses.of(rows, self.draft_worker.candidates_of(batch.spec_info))

    def _warm_up(self, batch: Any, rows: Ints) -> None:
        """Before a draft: whoever of these is behind catches up, and gets its candidates."""
        tap = self.draft_worker.tap
        if tap is None:
            return
        rows = rows[tap.gap[batch.req_pool_indices_cpu.numpy()[rows]] > 0]
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
        with self.drafter_context(), self.planning.catching_up(tokens):
            return self.draft_worker.catch_up(batch, rows, lens.numpy()[rows])

    def _count_ranks(self, config: SpeculationConfig, result: Any) -> None:
        """Of a tree, on the device; what a chain shows is in its accepted lengths."""
        if config.topk == 1:
            return
        assert self.planning is not None
        counts = self.draft_worker.count_ranks(result, self.planning.classes)
        self.planning.counted(async_d2h(counts))

    @contextmanager
    def drafter_context(self) -> Iterator[None]:
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
        record = self.watching.finished(num_correct_drafts_per_req)
        config = self.own if self.planning is None else record.config
        if not config.is_plain:
            self.feed_drafter(num_correct_drafts_per_req, str(config))

    def drafter_swapped(self, version: int) -> None:
        self.watching.drafter_swapped()

    @property
    def last_shared_read_runner(self) -> Any:
        """Whose forward was the step's last: the target's, where the drafter did not run."""
        if self._plain_now:
            return self.target_worker.model_runner
        return super().last_shared_read_runner
