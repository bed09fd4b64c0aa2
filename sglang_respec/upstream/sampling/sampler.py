"""Plain sampling, first tokens included: SGLang's sampler with this project's rule."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import torch
from sglang.srt.layers.logprob_processor import LogprobResult
from sglang.srt.layers.sampler import (
    SGLANG_RETURN_ORIGINAL_LOGPROB,
    Sampler,
    _SamplingMaskCapture,
)
from sglang.srt.managers.schedule_batch import FINISH_ABORT

from respec_kernels.reference.allowed import allowed
from respec_kernels.reference.sample_rows import likeliest
from sglang_respec.upstream.sampling.parameters import SamplingParameters
from sglang_respec.upstream.sampling.request_table import request_table
from sglang_respec.upstream.sampling.rows import rows_of
from sglang_respec.upstream.tree_ops import chosen_kernel


class RespecSampler(Sampler):
    """Takes the place of `Sampler`; preprocessing and the form of the outputs stay SGLang's."""

    _looked_at: torch.Tensor | None = None  # temperatures of a greedy batch, and what was seen
    _all_1 = False

    def forward(
        self,
        logits_output: Any,
        sampling_info: Any,
        return_logprob: bool,
        top_logprobs_nums: list[int],
        token_ids_logprobs: list[list[int] | None],
        positions: torch.Tensor,  # [B] of the last input tokens
        *,
        logprob_logits: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B] i64 tokens, -1 where a row held nothing to choose from; see `docs/sampling.md`."""
        if self._other_rule_asked():
            rest = {} if logprob_logits is None else {"logprob_logits": logprob_logits}
            tokens: torch.Tensor = super().forward(
                logits_output,
                sampling_info,
                return_logprob,
                top_logprobs_nums,
                token_ids_logprobs,
                positions,
                **rest,
            )
            return tokens
        logits = self._preprocess_logits(logits_output.next_token_logits, sampling_info)
        if sampling_info.is_all_greedy and logits.is_cpu and not return_logprob:
            tokens = likeliest(logits, self._other_than_1(sampling_info.temperatures))
        else:
            parameters = SamplingParameters.of(sampling_info)
            tokens, logprobs = chosen_kernel("sample_rows")(
                logits, positions, None, **vars(parameters), scored=return_logprob
            )
        if return_logprob:
            result = LogprobResult(token_logprobs=logprobs)
            asked = any(top_logprobs_nums) or any(ids is not None for ids in token_ids_logprobs)
            if asked or SGLANG_RETURN_ORIGINAL_LOGPROB or logprob_logits is not None:
                if logprob_logits is not None:  # as they were before a watermark
                    logits = self._preprocess_logits(logprob_logits, sampling_info)
                result = self.output_logprob_processor.compute_logprobs(
                    logprob_rows(logits, parameters.temperatures),
                    top_logprobs_nums,
                    token_ids_logprobs,
                    tokens.clamp(min=0),
                )
            result.write_output_to(logits_output)
        self._sync_token_ids_across_tp(tokens, sampling_info)
        if sampling_info.sampling_mask_batch_indices is not None:
            self._return_sampling_mask(logits_output, sampling_info, tokens)
        return tokens

    def _other_than_1(self, temperatures: torch.Tensor) -> torch.Tensor | None:
        """[B] f32, or None where all are 1, as of requests that ask for greedy by a temperature
        of 0. SGLang makes a new tensor when the batch changes, so few steps look at the numbers."""
        if temperatures is not self._looked_at:
            self._looked_at, self._all_1 = temperatures, bool((temperatures == 1).all())
        return None if self._all_1 else temperatures.view(-1)

    def _other_rule_asked(self) -> bool:
        """Modes that round or sample in a way of their own, which SGLang serves as before."""
        return self.rl_on_policy_target is not None or self.use_ascend_backend

    def _return_sampling_mask(
        self,
        logits_output: Any,
        sampling_info: Any,
        tokens: torch.Tensor,
    ) -> None:
        """The allowed set of the requests that ask for it, with its probabilities."""
        parameters = SamplingParameters.of(sampling_info)
        rows = sampling_info.sampling_mask_batch_indices
        scaled = logits_output.next_token_logits[rows].float()
        scaled /= parameters.temperatures[rows, None]
        may = allowed(
            scaled, parameters.top_ks[rows], parameters.top_ps[rows], parameters.min_ps[rows]
        )
        capture = _SamplingMaskCapture(
            weights=torch.where(may, scaled.softmax(-1), 0.0),
            token_ids=None,
            selected_weight=None,
            batch_rows=rows,
        )
        logits_output.sampling_mask_output = self._build_sampling_mask_output(
            tokens.clamp(min=0), capture, sampling_info.sampling_support_logprobs_capture_indices
        )


def logprob_rows(logits: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
    """[R, V] f32: log-probabilities as SGLang returns them."""
    scaled = logits.float()
    if not SGLANG_RETURN_ORIGINAL_LOGPROB:
        scaled = scaled / temperatures[:, None]
    return torch.log_softmax(scaled, dim=-1)


def sample_with_penalties(
    original: Callable[..., torch.Tensor], runner: Any, logits_output: Any, forward_batch: Any
) -> torch.Tensor:
    """Around `ModelRunner.sample`: new requests enter the table, penalties apply before all
    else, and what was sampled counts towards the next token's."""
    table = request_table(runner)
    info = forward_batch.sampling_info
    rows = rows_of(info)
    extends = forward_batch.forward_mode.is_extend()
    if not extends and not table.penalties.in_use:
        return original(runner, logits_output, forward_batch)
    slots = forward_batch.req_pool_indices[: logits_output.next_token_logits.shape[0]].long()
    if extends:
        table.enter(slots, info)
        admission, rows.admission = rows.admission, None
        if admission is not None and (any(rows.penalised) or table.penalties.in_use):
            new = slots[: len(admission.parameters)]  # SGLang puts running requests behind them
            table.penalties.admit(new, admission.parameters, admission.generated)
    if any(rows.penalised):
        table.penalties.penalise(logits_output.next_token_logits, slots)
    tokens = original(runner, logits_output, forward_batch)
    table.penalties.count(slots, tokens[:, None])
    return tokens


def no_penalties_of_sglang(*_: Any, **__: Any) -> None:
    """In place of SGLang's three penalty steps, which count one token per step."""


def fail_request(finished: bool, request: Any, *_: Any, **__: Any) -> None:
    """After `Req._check_vocab_boundary_finish`: a row of NaN is an error, not an end of text."""
    if finished:
        request.finished_reason = FINISH_ABORT(
            "The model gave NaN, or nothing but -inf, where a token was to be sampled; "
            "this request ends here, others go on. Look for overflow in the model's weights.",
            HTTPStatus.INTERNAL_SERVER_ERROR,
            "InternalServerError",
        )


def embed_only_tokens(_: None, batch: Any, *__: Any) -> None:
    """After `resolve_forward_inputs`: with overlapped scheduling a failed request runs one more
    step before it is ended, and -1 is no row of the embedding."""
    if batch.input_ids is not None:
        batch.input_ids.clamp_(min=0)
