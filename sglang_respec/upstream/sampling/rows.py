"""What each row of a batch's sampling info carries beside SGLang's own fields.

SGLang filters, merges and copies `SamplingBatchInfo` as requests leave and join; these hooks
follow it. Everything here is host data.
"""

from dataclasses import dataclass, field
from typing import Any

from sglang_respec.sampling.penalties import PenaltyParameters
from sglang_respec.upstream.sampling.seeds import seeds_of


@dataclass
class Admission:
    """New requests of a prefill batch, in the order of its rows."""

    parameters: list[PenaltyParameters]
    generated: list[list[int]]


@dataclass
class Rows:
    """One entry per row of the batch; `admission` waits for the forward pass of a prefill."""

    penalised: list[bool] = field(default_factory=list)
    admission: Admission | None = None


def rows_of(info: Any) -> Rows:
    rows: Rows | None = getattr(info, "respec_rows", None)
    if rows is None:
        rows = info.respec_rows = Rows([False] * len(info))
    return rows


def describe_rows(info: Any, _: type, batch: Any, *__: Any, **___: Any) -> None:
    """After `SamplingBatchInfo.from_schedule_batch`."""
    info.sampling_seed = seeds_of(batch)
    parameters = [_penalties_of(request) for request in batch.reqs]
    info.respec_rows = Rows(
        penalised=[not each.asks_for_nothing for each in parameters],
        admission=Admission(parameters, [list(request.output_ids) for request in batch.reqs]),
    )


def filter_rows(_: None, info: Any, keep_indices: list[int], *__: Any) -> None:
    """After `SamplingBatchInfo.filter_batch`."""
    rows = getattr(info, "respec_rows", None)
    if rows is not None:
        rows.penalised = [rows.penalised[index] for index in keep_indices]


def merge_rows(_: None, info: Any, other: Any) -> None:
    """After `SamplingBatchInfo.merge_batch`."""
    mine, theirs = getattr(info, "respec_rows", None), getattr(other, "respec_rows", None)
    if mine is not None and theirs is not None:
        # A new list: a forward pass in flight may hold the old one.
        mine.penalised = mine.penalised + theirs.penalised


def copy_rows(copied: Any, info: Any) -> None:
    """After `SamplingBatchInfo.copy_for_forward`: one forward pass admits the new requests."""
    rows = rows_of(info)
    copied.respec_rows = Rows(rows.penalised, rows.admission)
    rows.admission = None


def _penalties_of(request: Any) -> PenaltyParameters:
    params = request.sampling_params
    stop_ids: tuple[int, ...] = ()
    if params.min_new_tokens > 0:
        tokenizer = request.tokenizer
        ids = {*(params.stop_token_ids or ()), *(request.eos_token_ids or ())}
        if tokenizer is not None:
            ids |= {*(getattr(tokenizer, "additional_stop_token_ids", None) or ())}
            ids |= {tokenizer.eos_token_id}
        stop_ids = tuple(sorted(ids - {None}))
    return PenaltyParameters(
        params.frequency_penalty,
        params.presence_penalty,
        params.repetition_penalty,
        params.min_new_tokens,
        stop_ids,
    )
