"""Catch-up: the drafter's KV rebuilt over what requests decoded without it.

One draft-extend over the gaps of all requests that have one, of unequal length. It is SGLang's
own extend after a prefill, on a batch in which each request's "prompt" is its gap: it writes the
drafter's KV of every position in the gap and returns the candidates after the last one, so that
drafting goes on as if it had never stopped.
"""

import copy
from typing import Any

import numpy as np
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from sglang_respec.hidden_tap import HiddenTap, Ints, last_positions


def catch_up(
    extend: Any,  # EagleDraftWorker._draft_extend_for_prefill
    tap: HiddenTap,
    batch: Any,  # ScheduleBatch of which `rows` are behind
    rows: Ints,  # [b] i64 in the batch
    ends: Ints,  # [b] i64, committed lengths at which the gaps end
) -> Any:
    """Returns SGLang's `EagleDraftInput` of these rows; the tap counts them as warm."""
    slots = batch.req_pool_indices_cpu.numpy()[rows]
    lens = tap.kept(slots)
    hidden, next_tokens = tap.read(slots, ends, lens)
    last = torch.from_numpy(np.cumsum(lens) - 1).to(next_tokens.device)
    pending = next_tokens.index_select(0, last)
    # The extend shifts each request's tokens left by one and appends the pending one.
    gap_batch = _gap_batch(batch, rows, slots, ends, lens, input_ids=next_tokens.roll(1))
    found = extend(gap_batch, hidden, pending)
    tap.mark_warm(slots)
    return found


def _gap_batch(
    batch: Any,
    rows: Ints,
    slots: Ints,
    ends: Ints,
    lens: Ints,
    input_ids: torch.Tensor,
) -> Any:
    """A prefill batch over the gaps; `batch` and what hangs on it stay as they are."""
    device = batch.req_pool_indices.device
    picked = [int(row) for row in rows]
    gap_batch = copy.copy(batch)
    gap_batch.forward_mode = ForwardMode.EXTEND
    gap_batch.reqs = [batch.reqs[row] for row in picked]
    gap_batch.input_ids = input_ids

    gap_batch.req_pool_indices_cpu = torch.from_numpy(slots)
    gap_batch.req_pool_indices = gap_batch.req_pool_indices_cpu.to(device)
    gap_batch.seq_lens_cpu = torch.from_numpy(ends)
    gap_batch.seq_lens = gap_batch.seq_lens_cpu.to(device)
    gap_batch.seq_lens_sum = int(ends.sum())
    gap_batch.orig_seq_lens = gap_batch.seq_lens.to(torch.int32)
    gap_batch.prefix_lens = (ends - lens).tolist()
    gap_batch.extend_lens = lens.tolist()
    gap_batch.extend_num_tokens = int(lens.sum())

    where = torch.from_numpy(np.stack([np.repeat(slots, lens), last_positions(ends, lens)]))
    request, position = where.to(device)
    req_to_token = batch.req_to_token_pool.req_to_token
    gap_batch.out_cache_loc = req_to_token[request, position].to(torch.int64)

    if batch.multimodal_inputs is not None:
        gap_batch.multimodal_inputs = [batch.multimodal_inputs[row] for row in picked]
    gap_batch.chunked_req = gap_batch.chunked_req_next_prompt_token = None
    gap_batch.decoding_reqs = gap_batch.spec_info = None
    gap_batch.has_grammar = gap_batch.return_logprob = gap_batch.return_hidden_states = False
    gap_batch.top_logprobs_nums = gap_batch.token_ids_logprobs = None
    gap_batch.extend_logprob_start_lens = gap_batch.extend_input_logprob_token_ids = None
    return gap_batch
