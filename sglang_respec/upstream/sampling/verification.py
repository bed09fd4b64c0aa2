"""Verification as sampling: a tree's nodes are sampled as plain decoding would sample them.

In place of SGLang's `eagle_sample`, whose accept coins draw other tokens than plain decoding,
and which applies min-p, exact penalties and custom logit processors to none of them.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.environ import envs
from sglang.srt.layers.sampler import apply_custom_logit_processor
from sglang.srt.speculative.spec_utils import SIMULATE_ACC_LEN

from sglang_respec.sampling.paths import path_tokens
from sglang_respec.upstream.sampling.parameters import SamplingParameters
from sglang_respec.upstream.sampling.request_table import RequestTable
from sglang_respec.upstream.sampling.rows import rows_of
from sglang_respec.upstream.tree_ops import chosen_kernel

Verified = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def verify(
    table: RequestTable, verify_input: Any, batch: Any, logits_output: Any, grammar_mask: Any
) -> Verified:
    """Tokens [B * n] i32, committed tokens per request [B] i32 (bonus included), and the
    accepted nodes [B, depth] i32, as SGLang's worker takes them."""
    info, nodes = batch.sampling_info, verify_input.draft_token_num
    logits = logits_output.next_token_logits
    if any(rows_of(info).penalised):
        _penalise(logits, table, verify_input, batch)
    if grammar_mask is not None:
        grammar_mask.apply(logits)
    if info.logit_bias is not None:
        logits.view(-1, nodes, logits.shape[1]).add_(info.logit_bias[:, None])
    predicts, accept_index, accepted, logprobs, failed = chosen_kernel("verify_sampled_tree")(
        logits,
        verify_input.positions,
        drafted(verify_input),
        verify_input.retrieve_index,
        verify_input.retrieve_next_token,
        verify_input.retrieve_next_sibling,
        **vars(SamplingParameters.of(info)),
        max_depth=verify_input.max_tree_depth,
        root_only=_process_roots(logits, nodes, info),
    )
    logits_output.respec_logprobs = logprobs
    if table.penalties.in_use:
        at = accept_index.long()
        tokens = torch.where(at >= 0, predicts[at.clamp(min=0)], -1)
        table.penalties.count(batch.req_pool_indices.long(), tokens)
    return _marked(predicts, accept_index, accepted, failed), accepted + 1, accept_index


def drafted(verify_input: Any) -> torch.Tensor:  # [B, n] int64
    """The tokens of the nodes. SGLang's own 0 steps hand on the last verify's, which are int32."""
    tokens: torch.Tensor = verify_input.draft_token.view(-1, verify_input.draft_token_num)
    return tokens.long()


def _penalise(logits: torch.Tensor, table: RequestTable, verify_input: Any, batch: Any) -> None:
    nodes = verify_input.draft_token_num
    paths = path_tokens(
        drafted(verify_input),
        verify_input.retrieve_next_token,
        verify_input.retrieve_next_sibling,
        max_depth=verify_input.max_tree_depth - 1,
        max_siblings=nodes - 1 if verify_input.tree_topk < 1 else verify_input.tree_topk,
    )
    slots = batch.req_pool_indices.long().repeat_interleave(nodes)
    table.penalties.penalise(logits, slots, paths.flatten(0, 1))


def _process_roots(logits: torch.Tensor, nodes: int, info: Any) -> torch.Tensor | None:
    """[B] bool of the requests that may commit one token only, or None for no request.

    A custom logit processor sees what a request has generated so far, which is known at the
    root alone: deeper nodes would be sampled without it.
    """
    if not info.has_custom_logit_processor:
        return None
    roots = logits[::nodes].clone()
    apply_custom_logit_processor(roots, info)
    logits[::nodes] = roots
    root_only = torch.zeros(roots.shape[0], dtype=torch.bool, device=logits.device)
    for entry in info.custom_logit_processor.values():
        root_only[entry.indices] = True
    return root_only


def _marked(
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accepted: torch.Tensor,
    failed: torch.Tensor,
) -> torch.Tensor:
    """A failed request's last token becomes -1, which ends it; the next forward never sees it."""
    last = accept_index.gather(1, accepted.long()[:, None]).long().flatten()
    return predicts.scatter(0, last, torch.where(failed, -1, predicts[last]))


def couple_verification(
    original: Callable[..., Verified],
    verify_input: Any,
    batch: Any,
    logits_output: Any,
    grammar_mask: Any = None,
    uno_target_max_top_k: int | None = None,
    **rest: Any,
) -> Verified:
    """Around `eagle_sample`. Idle ranks, watermarks (a rule of their own) and SGLang's simulated
    acceptance stay with SGLang."""
    table: RequestTable | None = getattr(verify_input, "respec_requests", None)
    watermarked = getattr(batch.sampling_info, "has_watermark_candidates", False)
    if table is None or batch.forward_mode.is_idle() or watermarked or SIMULATE_ACC_LEN > 0:
        return original(
            verify_input, batch, logits_output, grammar_mask, uno_target_max_top_k, **rest
        )
    return verify(table, verify_input, batch, logits_output, grammar_mask)


def return_logprobs(
    original: Callable[..., None],
    batch: Any,
    logits_output: Any,
    predict: torch.Tensor,
    **rest: Any,
) -> None:
    """Around `compute_spec_logprobs`: the sampling pass has the committed tokens' already."""
    logprobs = logits_output.__dict__.pop("respec_logprobs", None)
    whole_rows = any(batch.top_logprobs_nums or ()) or any(
        ids is not None for ids in batch.token_ids_logprobs or ()
    )
    if logprobs is None or whole_rows or envs.SGLANG_RETURN_ORIGINAL_LOGPROB.get():
        original(batch, logits_output, predict.clamp(min=0), **rest)
    else:
        logits_output.next_token_logprobs = logprobs
