"""Drafting with the target's noise: the drafter guesses the token that will be sampled.

A drafter row at position p has read token p + 1 and guesses token p + 2, which the target
samples from its row p + 1: both hash position p + 1. See `docs/sampling.md`.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.speculative.eagle_utils import (
    organize_draft_results,
    per_step_draft_out_cache_loc,
)
from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker
from sglang.srt.speculative.spec_utils import select_top_k_tokens

from sglang_respec.upstream.sampling.request_table import RequestTable, request_table
from sglang_respec.upstream.tree_ops import chosen_kernel

Drafts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]


class RespecDraftWorker(EagleDraftWorker):
    """Takes the place of `EagleDraftWorker`: the same forwards, candidates ranked by
    `log q + noise` and trees grown by the probability that a path is the target's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._logits_output: Any = None
        self.draft_runner.forward = self._keeping_logits(
            self.draft_runner.forward, lambda output: output.logits_output
        )

    @property
    def requests(self) -> RequestTable:
        return request_table(self.target_worker.model_runner)

    def _capture_cuda_graphs(self) -> None:
        request_table(self.target_worker.model_runner)  # before: a graph must not own it
        super()._capture_cuda_graphs()
        runner = self.cuda_graph_runner_for_draft_extend
        if runner is not None:
            runner.execute = self._keeping_logits(runner.execute, lambda output: output)

    def _keeping_logits(
        self, forward: Callable[..., Any], logits_output_of: Callable[[Any], Any]
    ) -> Callable[..., Any]:
        """SGLang's draft-extend keeps its logits to itself; they are ranked again here."""

        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            self._logits_output = logits_output_of(output)
            return output

        return run

    def draft_forward(self, forward_batch: Any) -> Drafts:
        """Grow the tree: `num_steps` levels of candidates, `topk` of them followed up."""
        if forward_batch.forward_mode.is_idle():
            return super().draft_forward(forward_batch)
        spec_info = forward_batch.spec_info
        probs, ids, hidden = spec_info.topk_p, spec_info.topk_index, spec_info.hidden_states
        ids = self._target_ids(ids)
        locations = per_step_draft_out_cache_loc(
            forward_batch.out_cache_loc,
            forward_batch.batch_size,
            self.topk,
            self.speculative_num_steps,
        )
        slots = forward_batch.req_pool_indices.long().repeat_interleave(self.topk)
        scores, levels = None, []
        for step in range(self.speculative_num_steps):
            followed, hidden, scores, level = select_top_k_tokens(
                step, probs, ids, hidden, scores, self.topk
            )
            levels.append(level)
            if step + 1 < self.speculative_num_steps:
                output = self._forward_step(forward_batch, step, followed, hidden, locations[step])
                hidden = output.hidden_states
                probs, ids = self._rank(
                    output.next_token_logits,
                    forward_batch.positions + 1,
                    slots,
                    forward_batch.sampling_info,
                )
                ids = self._target_ids(ids)
                self._advance(forward_batch)
        return self._organize(levels)

    def _forward_step(
        self,
        forward_batch: Any,
        step: int,
        input_ids: torch.Tensor,
        hidden: torch.Tensor,
        locations: torch.Tensor,
    ) -> Any:
        forward_batch.input_ids = input_ids
        forward_batch.out_cache_loc = locations
        forward_batch.spec_info.hidden_states = hidden
        backend = self.draft_attn_backend.attn_backends[step]
        with forward_context(ForwardContext(attn_backend=backend), forward_batch=forward_batch):
            return self.draft_runner.forward(forward_batch).logits_output

    def _advance(self, forward_batch: Any) -> None:
        forward_batch.positions.add_(1)
        if self.draft_runner.model_config.model_is_mrope:
            forward_batch.mrope_positions.add_(1)

    def _organize(self, levels: list[tuple[torch.Tensor, ...]]) -> Drafts:
        scores, tokens, parents = (list(each) for each in zip(*levels, strict=True))
        batch = tokens[0].shape[0]
        if self.topk == 1 and batch <= self._topk1_parents_prealloc.shape[0]:
            parent_list = self._topk1_parents_prealloc[:batch]
            return (
                parent_list,
                self._topk1_score_indices_prealloc[:batch],
                torch.cat(tokens, 1),
                None,
            )
        return *organize_draft_results(
            scores, tokens, parents, self.speculative_num_draft_tokens
        ), None

    def _draft_extend_for_prefill(
        self,
        batch: Any,
        target_hidden_states: Any,
        next_token_ids: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        draft_input = super()._draft_extend_for_prefill(
            batch, target_hidden_states, next_token_ids.clamp(min=0), *args, **kwargs
        )
        if not batch.forward_mode.is_idle():
            draft_input.topk_p, draft_input.topk_index = self._rank(
                self._logits_output.next_token_logits,
                batch.seq_lens,
                batch.req_pool_indices.long(),
                batch.sampling_info,
            )
        return draft_input

    def _draft_extend_for_decode(self, batch: Any, batch_result: Any, **kwargs: Any) -> None:
        committed = batch_result.next_token_ids
        batch_result.next_token_ids = committed.clamp(min=0)  # a failed request's last is -1
        super()._draft_extend_for_decode(batch, batch_result, **kwargs)
        batch_result.next_token_ids = committed
        if not batch.forward_mode.is_idle():
            draft_input = batch_result.next_draft_input
            draft_input.topk_p, draft_input.topk_index = self._rank(
                self._logits_output.next_token_logits,
                batch_result.new_seq_lens,
                batch.req_pool_indices.long(),
                batch.sampling_info,
            )

    def _rank(
        self,
        logits: torch.Tensor,  # [R, Vd]
        positions: torch.Tensor,  # [R] hashed
        slots: torch.Tensor,  # [R]
        sampling_info: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The `topk` likeliest choices of the target, [R, topk] probabilities and draft ids."""
        requests = self.requests
        probs, ids = chosen_kernel("draft_topk")(
            logits,
            positions,
            slots,
            requests.temperatures,
            requests.top_ks,
            requests.seeds,
            self.hot_token_id,
            self.topk,
            greedy=not _capturing(logits) and bool(sampling_info.is_all_greedy),
        )
        return probs, ids

    def _target_ids(self, ids: torch.Tensor) -> torch.Tensor:
        return ids if self.hot_token_id is None else self.hot_token_id[ids]


def _capturing(tensor: torch.Tensor) -> bool:
    """A captured graph serves greedy and sampled batches alike."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
