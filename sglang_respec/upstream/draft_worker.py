"""The drafter's side of the worker: a prefill that may be put off, and drafts of any shape."""

from typing import Any

import numpy as np
import torch
from sglang.srt.speculative.eagle_info import EagleDraftInput
from sglang.srt.speculative.eagle_utils import (
    _eagle_prefill_tail_tokens,
    get_draft_recurrent_hidden_state_spec,
)

from sglang_respec.draft_ranks import count_tree_ranks
from sglang_respec.hidden_tap import HiddenTap, Ints
from sglang_respec.upstream.catch_up import catch_up
from sglang_respec.upstream.sampling.drafting import RespecDraftWorker


class TappedDraftWorker(RespecDraftWorker):
    """Our EAGLE-3 drafter, which may be behind its target.

    tap: where the hidden states go that it has not seen; None if it always or never runs.
    put_off: a prefill leaves the drafter behind (with a tap) or out of it for good (without).
    draft_topk: candidates per step of the shape in force. `topk` stays the server's own, the
        widest: as many candidates travel from one step to the next, whatever shape each has.
    """

    topk: int
    tap: HiddenTap | None = None
    put_off = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.draft_topk = self.topk
        self._cold_rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def draft(self, batch: Any, *, with_topology: bool = False) -> Any:
        """Drafts in the shape in force from the best `draft_topk` of the candidates."""
        widest, self.topk = self.topk, self.draft_topk
        try:
            candidates = batch.spec_info
            if self.topk < widest:
                candidates.topk_p = candidates.topk_p[:, : self.topk]
                candidates.topk_index = candidates.topk_index[:, : self.topk]
            drafted = super().draft(batch, with_topology=True)
        finally:
            self.topk = widest
        verify_input, self._parents, self._picks = drafted
        return drafted if with_topology else verify_input

    def candidates_of(self, drafts: EagleDraftInput) -> torch.Tensor:
        """[B, K] i64: what the next draft would begin with, as tokens of the target."""
        return self._target_ids(drafts.topk_index)

    def count_ranks(self, result: Any, classes: Ints) -> torch.Tensor:
        """Where the target's tokens stood in the tree drafted last; see `count_tree_ranks`."""
        return count_tree_ranks(
            self._picks,
            self._parents,
            result.accept_index,
            result.accept_lens,
            torch.from_numpy(classes).to(self._picks.device, non_blocking=True),
            self.draft_topk,
        )

    def _draft_extend_for_prefill(
        self,
        batch: Any,
        target_hidden_states: torch.Tensor,
        next_token_ids: torch.Tensor,
        mm_input_embeds: torch.Tensor | None = None,
        kv_loc_plan: Any = None,
    ) -> Any:
        extend = super()._draft_extend_for_prefill
        arguments = (batch, target_hidden_states, next_token_ids, mm_input_embeds, kv_loc_plan)
        if batch.forward_mode.is_idle() or (self.tap is None and not self.put_off):
            return extend(*arguments)
        if self.tap is None:
            return self.cold_input(next_token_ids.clamp(min=0))

        slots = batch.req_pool_indices_cpu.tolist()
        self._enter_prefill(batch, slots)
        if self.put_off and self._fits_the_window(slots, batch.extend_lens):
            next_token_ids = next_token_ids.clamp(min=0)  # -1 marks a failed request
            next_tokens = _shifted(batch, next_token_ids)
            self.tap.write_prefill(
                slots, batch.prefix_lens, batch.extend_lens, target_hidden_states, next_tokens
            )
            return self.cold_input(next_token_ids)
        self._catch_up_earlier_chunks(batch, slots)
        self.tap.mark_warm(slots)
        return extend(*arguments)

    def _enter_prefill(self, batch: Any, slots: list[int]) -> None:
        """Later chunks, and running requests that SGLang mixed in, keep their gaps."""
        assert self.tap is not None
        owners, prefixes = _owners(batch), batch.prefix_lens
        running = {id(request) for request in batch.decoding_reqs or ()}
        mixed_in = [i for i, request in enumerate(batch.reqs) if id(request) in running]
        for i in mixed_in:
            self.tap.end_prefill(slots[i : i + 1], owners[i : i + 1], prefixes[i : i + 1])
        self.tap.begin_prefill(slots, owners, prefixes)
        ends = [p + n for p, n in zip(prefixes, batch.extend_lens, strict=True)]
        self.tap.end_prefill(slots, owners, ends)

    def _fits_the_window(self, slots: list[int], extend_lens: list[int]) -> bool:
        """What would be lost again is not kept: then the drafter runs at once."""
        assert self.tap is not None
        return bool((self.tap.gap[slots] + np.array(extend_lens) <= self.tap.window).all())

    def _catch_up_earlier_chunks(self, batch: Any, slots: list[int]) -> None:
        assert self.tap is not None
        rows = np.flatnonzero(self.tap.gap[slots])
        if rows.size:
            self.catch_up(batch, rows, np.array(batch.prefix_lens)[rows])

    def catch_up(self, batch: Any, rows: Ints, ends: Ints) -> EagleDraftInput:
        """Runs the drafter over the gaps of these rows; see `catch_up`."""
        assert self.tap is not None
        return catch_up(super()._draft_extend_for_prefill, self.tap, batch, rows, ends)

    def cold_input(self, bonus_tokens: torch.Tensor) -> EagleDraftInput:
        """What a step leaves for the next when the drafter did not run: no candidates.

        The zeros are there because SGLang filters and merges batches row by row; it never writes to
        them, so that one set serves every step of a batch size.
        """
        batch, device = bonus_tokens.shape[0], bonus_tokens.device
        if self._cold_rows is None or len(self._cold_rows[0]) != batch:
            width, dtype = get_draft_recurrent_hidden_state_spec(self.draft_runner)
            self._cold_rows = (
                torch.zeros((1, self.topk), dtype=torch.float32, device=device).expand(batch, -1),
                torch.zeros((1, self.topk), dtype=torch.int64, device=device).expand(batch, -1),
                torch.zeros((1, width), dtype=dtype, device=device).expand(batch, -1),
            )
        topk_p, topk_index, hidden_states = self._cold_rows
        return EagleDraftInput(
            topk_p=topk_p,
            topk_index=topk_index,
            hidden_states=hidden_states,
            bonus_tokens=bonus_tokens,
            num_tokens_per_req=1,
            num_tokens_for_logprob_per_req=1,
        )


def _owners(batch: Any) -> list[tuple[str, int]]:
    """Who prefills: a request that was retracted in between begins anew."""
    return [(request.rid, request.retraction_count) for request in batch.reqs]


def _shifted(batch: Any, next_token_ids: torch.Tensor) -> torch.Tensor:
    """[N] i64: for every token of the prefill the one that follows it."""
    following = batch.input_ids.roll(-1)
    lasts = np.cumsum(batch.extend_lens) - 1
    index = torch.from_numpy(lasts).to(following.device)
    return following.index_copy(0, index, _eagle_prefill_tail_tokens(batch, next_token_ids))
