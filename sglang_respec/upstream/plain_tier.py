"""The plain tier: one token per request by the target alone, with speculation switched on.

SGLang's own zero-step speculation verifies a tree of one node and runs the drafter over it. Here
the target decodes as it does without speculation: forward mode DECODE, its ordinary sampler.
What the scheduler gets back is a verify that accepted nothing: one token per request.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch


def decode_plainly(
    batch: Any,  # ScheduleBatch, its `seq_lens` [B] committed and its bonus tokens pending
    target_worker: Any,
    capture_hidden: CaptureHiddenMode | None,  # None: what the requests ask for
    on_publish: Callable[[torch.Tensor], None] | None,
    grammar_barrier: Callable[[], None] | None,
) -> Any:  # GenerationBatchResult
    """Decodes every request's pending token; its KV goes to the slot after the committed ones.

    The scheduler has reserved that slot for a verify. Hidden states, if captured, are
    `logits_output.hidden_states` [B, 3 * hidden], or [B, hidden] where no drafter ever runs. The
    caller fills in `next_draft_input`.
    """
    runner = target_worker.model_runner
    committed = batch.seq_lens
    batch.input_ids = batch.spec_info.bonus_tokens.to(torch.int64)
    req_to_token = batch.req_to_token_pool.req_to_token
    batch.out_cache_loc = req_to_token[batch.req_pool_indices, committed].to(torch.int64)
    batch.seq_lens = committed + 1
    if batch.seq_lens_cpu is not None:
        batch.seq_lens_cpu = batch.seq_lens if committed.is_cpu else batch.seq_lens_cpu + 1
    batch.seq_lens_sum = None  # SGLang sums the lengths again
    batch.spec_info = None
    forward_batch = ForwardBatch.init_new(
        batch, runner, capture_hidden_mode=capture_hidden, return_hidden_states_before_norm=False
    )
    # `is_verify` leaves the sampling to the caller: with a grammar it waits for the tokens of
    # the batch before.
    result = target_worker.forward_batch_generation(
        batch=None, forward_batch=forward_batch, is_verify=True
    )
    if batch.has_grammar and grammar_barrier is not None:
        grammar_barrier()
    tokens = runner.sample(result.logits_output, forward_batch)
    if on_publish is not None:
        on_publish(batch.seq_lens)
    if batch.return_logprob:
        _one_column(result.logits_output)

    result.next_token_ids = tokens
    result.accept_lens = _ones(len(tokens), tokens.device)
    result.new_seq_lens = batch.seq_lens
    result.speculative_num_draft_tokens = 1
    result.extra_keep_alive_refs = [forward_batch]
    return result


def prefill_plainly(
    batch: Any,  # ScheduleBatch of a prefill
    target_worker: Any,
    on_publish: Callable[[torch.Tensor], None] | None,
) -> Any:  # GenerationBatchResult
    """The target's prefill, where no drafter follows: what SGLang does for one without the hidden
    states, but for requests that ask for them. The caller fills in `next_draft_input`."""
    result = target_worker.forward_batch_generation(batch)
    result.new_seq_lens = batch.seq_lens
    if on_publish is not None:
        on_publish(batch.seq_lens)
    return result


@lru_cache(maxsize=1024)
def _ones(count: int, device: torch.device) -> torch.Tensor:
    """[B] i32, the same tensor for every step of a batch size: nobody writes to it."""
    return torch.ones(count, dtype=torch.int32, device=device)


def embeddable(tokens: torch.Tensor) -> torch.Tensor:
    """[B] i64: the sampled tokens; 0 in place of a -1, which marks a failed request."""
    tokens = tokens.to(torch.int64)
    if tokens.is_cpu and min(tokens.tolist(), default=0) >= 0:  # as ever
        return tokens
    return tokens.clamp(min=0)


def _one_column(logits_output: Any) -> None:
    """Log-probabilities [B] as [B, 1], as after a verify of one node."""
    logits_output.next_token_logprobs = logits_output.next_token_logprobs.unsqueeze(-1)
