"""sample_rows in Triton: one read of each row, however the row is shared out.

Mathematics
    As in ``reference/sample_rows.py``; tokens are the same integers (``race.py`` says why).
    An unusable row shows in the sum of its weights: NaN, or 0 if nothing is allowed.
Launches
    Many rows: one launch, one program per row. Few rows: ``splits`` programs scan a row and leave
    four numbers each, a second launch combines them. Filtered rows that are split take two
    launches in between, one inspection (``allowed.py``) each; whoever still is undecided then is
    finished by its one program of the last launch. What a launch needs from the one before, every
    program combines for itself: no atomics, no waiting between programs, no host.
Memory
    Unfiltered rows are read once, filtered rows once more per inspection (the first decides with a
    chance of the allowed mass). Scratch is 56 bytes per row, split and pass. Nothing of the size of
    the vocabulary is written. The launches can be captured; the two weight tables are made on
    the first call with ``filtered``, which must not be inside a capture.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from respec_kernels.reference.allowed import weight_tables
from respec_kernels.sampling_checks import check_sample_rows
from respec_kernels.triton.allowed import inspect, judge, weights
from respec_kernels.triton.noise import row_state
from respec_kernels.triton.race import LOG2_E, NOBODY, scan
from respec_kernels.triton.tuning import Tuning, tuning_for


@triton.jit
def _row_and_owner(  # type: ignore[no-untyped-def]
    slot, live_ptr, requests_ptr, per_request, LIVE: tl.constexpr, NAMED: tl.constexpr
):
    """The row of this output (-1: none) and its request."""
    row = slot.to(tl.int64)
    if LIVE:
        row = tl.load(live_ptr + slot)
    owner = tl.maximum(row, 0) // per_request
    if NAMED:
        owner = tl.load(requests_ptr + tl.maximum(row, 0))
    return row, owner


@triton.jit
def _is_filtered(top_k, top_p, min_p, vocabulary):  # type: ignore[no-untyped-def]
    return (top_k > 1) & ((top_k < vocabulary) | (top_p < 1.0) | (min_p > 0.0))


@triton.jit
def _share(split, vocabulary, SPLITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The cells of this split: whole blocks, as many for everyone."""
    cells = tl.cdiv(tl.cdiv(vocabulary, BLOCK), SPLITS) * BLOCK
    first = split * cells
    return first, tl.minimum(first + cells, vocabulary)


@triton.jit
def _scanned(floats_ptr, ints_ptr, slot, temperature, SPLITS: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The scan of a whole row from those of its splits: largest, total, winner's id."""
    part = tl.arange(0, PARTS)
    inside = part < SPLITS
    floats = floats_ptr + (slot * SPLITS + part) * 3
    largests = tl.load(floats, mask=inside, other=float("-inf")).to(tl.float32)
    totals = tl.load(floats + 1, mask=inside, other=0.0).to(tl.float32)
    bests = tl.load(floats + 2, mask=inside, other=float("-inf"))
    ids = tl.load(ints_ptr + (slot * SPLITS + part) * 4, mask=inside, other=NOBODY)
    largest = tl.max(largests, 0)
    origin = tl.where(largest == float("-inf"), 0.0, largest)
    per_bit = tl.div_rn(tl.full([], LOG2_E, tl.float32), temperature)
    total = tl.sum(totals * tl.exp2((largests - origin) * per_bit), 0)
    winner = tl.min(tl.where(bests == tl.max(bests, 0), ids, NOBODY), 0)
    return largest, total, winner.to(tl.int32)


@triton.jit
def _inspected(floats_ptr, ints_ptr, slot, SPLITS: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The inspection of a whole row from those of its splits: count, mass, total, next id."""
    part = tl.arange(0, PARTS)
    inside = part < SPLITS
    bests = tl.load(floats_ptr + (slot * SPLITS + part) * 3 + 2, mask=inside, other=float("-inf"))
    ints = ints_ptr + (slot * SPLITS + part) * 4
    ids = tl.load(ints, mask=inside, other=NOBODY)
    count = tl.sum(tl.load(ints + 1, mask=inside, other=0), 0)
    mass = tl.sum(tl.load(ints + 2, mask=inside, other=0), 0)
    total = tl.sum(tl.load(ints + 3, mask=inside, other=0), 0)
    following = tl.min(tl.where(bests == tl.max(bests, 0), ids, NOBODY), 0)
    return count, mass, total, following.to(tl.int32)


@triton.jit
def _verdict(  # type: ignore[no-untyped-def]
    row_ptr, pivot, temperature, peak, count, mass, total, top_k, top_p, min_p, high_ptr, low_ptr
):
    t = tl.div_rn(tl.load(row_ptr + pivot).to(tl.float32), temperature)
    weight = weights(peak - t, high_ptr, low_ptr)
    return judge(count, mass, total, weight, top_k, top_p, min_p)


@triton.jit
def _state_of(  # type: ignore[no-untyped-def]
    row_ptr, floats_ptr, ints_ptr, slot, pass_cells, temperature, top_k, top_p, min_p, vocabulary,
    high_ptr, low_ptr, INSPECTED: tl.constexpr, SPLITS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A row after the scan and so many inspections: largest, total, pivot, open (undecided)."""
    largest, total, pivot = _scanned(floats_ptr, ints_ptr, slot, temperature, SPLITS, PARTS)
    peak = tl.div_rn(largest, temperature)
    usable = (total > 0.0) & (total < float("inf")) & (peak < float("inf"))
    undecided = usable & _is_filtered(top_k, top_p, min_p, vocabulary)
    for done in tl.static_range(INSPECTED):
        if undecided:
            count, mass, weighed, following = _inspected(
                floats_ptr + (done + 1) * pass_cells * 3,
                ints_ptr + (done + 1) * pass_cells * 4,
                slot, SPLITS, PARTS,
            )  # fmt: skip
            undecided = not _verdict(
                row_ptr, pivot, temperature, peak, count, mass, weighed, top_k, top_p, min_p,
                high_ptr, low_ptr,
            )  # fmt: skip
            pivot = tl.where(undecided, following, pivot)
    return largest, total, pivot, undecided


@triton.jit
def _pass_kernel(  # type: ignore[no-untyped-def]  # Triton gives annotations a meaning
    logits_ptr,  # [R, V] f32|bf16
    positions_ptr,  # [R] i64
    requests_ptr,  # [R] i64
    live_ptr,  # [slots] i64
    temperatures_ptr,  # [B] f32
    top_ks_ptr,  # [B] i32
    top_ps_ptr,  # [B] f32
    min_ps_ptr,  # [B] f32
    seeds_ptr,  # [B] i64
    high_ptr,  # [4096] i64
    low_ptr,  # [4096] i64
    floats_ptr,  # [passes, slots, SPLITS, 3] f64: largest, total, best
    ints_ptr,  # [passes, slots, SPLITS, 4] i64: id, count, mass, total
    row_stride,
    vocabulary,
    per_request,
    pass_cells,  # slots * SPLITS
    PASS: tl.constexpr,  # 0 scans, 1 and up inspect
    LIVE: tl.constexpr,
    NAMED: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,  # SPLITS rounded up to a power of two
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0)
    split = tl.program_id(1)
    row, owner = _row_and_owner(slot, live_ptr, requests_ptr, per_request, LIVE, NAMED)
    first, end = _share(split, vocabulary, SPLITS, BLOCK)
    cell = PASS * pass_cells + slot * SPLITS + split
    if row >= 0:
        row_ptr = logits_ptr + row * row_stride
        temperature = tl.load(temperatures_ptr + owner)
        top_k = tl.load(top_ks_ptr + owner)
        state = row_state(tl.load(seeds_ptr + owner), tl.load(positions_ptr + row))
        if PASS == 0:
            largest, total, best, winner = scan(
                row_ptr, first, end, temperature, top_k == 1, state, BLOCK
            )
            tl.store(floats_ptr + cell * 3, largest.to(tl.float64))
            tl.store(floats_ptr + cell * 3 + 1, total.to(tl.float64))
            tl.store(floats_ptr + cell * 3 + 2, best)
            tl.store(ints_ptr + cell * 4, winner.to(tl.int64))
        else:
            largest, total, pivot, undecided = _state_of(
                row_ptr, floats_ptr, ints_ptr, slot, pass_cells, temperature, top_k,
                tl.load(top_ps_ptr + owner), tl.load(min_ps_ptr + owner), vocabulary,
                high_ptr, low_ptr, PASS - 1, SPLITS, PARTS,
            )  # fmt: skip
            if undecided:
                pivot_t = tl.div_rn(tl.load(row_ptr + pivot).to(tl.float32), temperature)
                count, mass, weighed, best, winner = inspect(
                    row_ptr, first, end, temperature, tl.div_rn(largest, temperature), pivot_t,
                    pivot, state, high_ptr, low_ptr, BLOCK,
                )  # fmt: skip
                tl.store(floats_ptr + cell * 3 + 2, best)
                tl.store(ints_ptr + cell * 4, winner.to(tl.int64))
                tl.store(ints_ptr + cell * 4 + 1, count.to(tl.int64))
                tl.store(ints_ptr + cell * 4 + 2, mass)
                tl.store(ints_ptr + cell * 4 + 3, weighed)


@triton.jit
def _finish_kernel(  # type: ignore[no-untyped-def]  # Triton gives annotations a meaning
    logits_ptr,  # as in _pass_kernel
    positions_ptr,
    requests_ptr,
    live_ptr,
    temperatures_ptr,
    top_ks_ptr,
    top_ps_ptr,
    min_ps_ptr,
    seeds_ptr,
    high_ptr,
    low_ptr,
    floats_ptr,
    ints_ptr,
    tokens_ptr,  # [slots] i64
    logprobs_ptr,  # [slots] f32
    row_stride,
    vocabulary,
    per_request,
    pass_cells,
    FILTERED: tl.constexpr,
    INSPECTED: tl.constexpr,  # inspections already made
    LIVE: tl.constexpr,
    NAMED: tl.constexpr,
    SPLITS: tl.constexpr,  # 1: nothing was scanned yet
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slot = tl.program_id(0)
    row, owner = _row_and_owner(slot, live_ptr, requests_ptr, per_request, LIVE, NAMED)
    token = tl.full([], -1, tl.int64)
    logprob = tl.full([], float("nan"), tl.float32)
    if row >= 0:
        row_ptr = logits_ptr + row * row_stride
        temperature = tl.load(temperatures_ptr + owner)
        top_k = tl.load(top_ks_ptr + owner)
        top_p = tl.full([], 1.0, tl.float32)
        min_p = tl.full([], 0.0, tl.float32)
        if FILTERED:
            top_p = tl.load(top_ps_ptr + owner)
            min_p = tl.load(min_ps_ptr + owner)
        state = row_state(tl.load(seeds_ptr + owner), tl.load(positions_ptr + row))
        if SPLITS == 1:
            largest, total, _, pivot = scan(
                row_ptr, 0, vocabulary, temperature, top_k == 1, state, BLOCK
            )
        else:
            largest, total, pivot = _scanned(floats_ptr, ints_ptr, slot, temperature, SPLITS, PARTS)
        peak = tl.div_rn(largest, temperature)
        usable = (total > 0.0) & (total < float("inf")) & (peak < float("inf"))
        if FILTERED:
            if SPLITS == 1:
                undecided = usable & _is_filtered(top_k, top_p, min_p, vocabulary)
            else:
                largest, total, pivot, undecided = _state_of(
                    row_ptr, floats_ptr, ints_ptr, slot, pass_cells, temperature, top_k, top_p,
                    min_p, vocabulary, high_ptr, low_ptr, INSPECTED, SPLITS, PARTS,
                )  # fmt: skip
            while undecided:
                pivot_t = tl.div_rn(tl.load(row_ptr + pivot).to(tl.float32), temperature)
                count, mass, weighed, _, following = inspect(
                    row_ptr, 0, vocabulary, temperature, peak, pivot_t, pivot, state,
                    high_ptr, low_ptr, BLOCK,
                )  # fmt: skip
                undecided = not _verdict(
                    row_ptr, pivot, temperature, peak, count, mass, weighed, top_k, top_p, min_p,
                    high_ptr, low_ptr,
                )  # fmt: skip
                pivot = tl.where(undecided, following, pivot)
        if usable:
            token = pivot.to(tl.int64)
            below = tl.load(row_ptr + pivot).to(tl.float32) - largest
            logprob = tl.div_rn(below, temperature) - tl.log(total)
    tl.store(tokens_ptr + slot, token)
    tl.store(logprobs_ptr + slot, logprob)


def sample_rows(
    logits: torch.Tensor,  # [R, V] f32|bf16, -inf = forbidden; any row stride
    positions: torch.Tensor,  # [R] i64, hashed: index of the row's last input token
    requests: torch.Tensor | None,  # [R] i64 row -> request; None: row r is of request r // (R / B)
    temperatures: torch.Tensor,  # [B] f32 > 0
    top_ks: torch.Tensor,  # [B] i32 >= 1; 1 = greedy, >= V = no top-k
    top_ps: torch.Tensor,  # [B] f32 in (0, 1]
    min_ps: torch.Tensor,  # [B] f32 in [0, 1]
    seeds: torch.Tensor,  # [B] i64
    *,
    filtered: bool,
    greedy: bool = False,
    scored: bool = True,
    live: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    logprobs: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each row's token by coupled sampling, with its logprob.

    Args:
        filtered: whether any row has a top-k (other than greedy and all), a top-p or a min-p.
            False takes the one-pass path; top_ps and min_ps are then not read.
        greedy: a promise that all rows are greedy (top_k = 1): no filter is looked at.
        scored: False where nobody reads the logprobs: the second output is then of no length. They
            fall out of the one read of the row, so this saves nothing here.
        live: ``[M]`` i64, the rows to visit; entries below 0 are skipped. None: all rows.
        tokens: ``[R or M]`` i64 buffer for the first output, for CUDA graphs.
        logprobs: ``[R or M]`` f32 buffer for the second.

    Returns:
        ``tokens`` and ``logprobs``, one per row or per entry of ``live``; -1 and NaN where the row
        is unusable or skipped.

    Raises:
        ValueError: a shape, dtype, device or stride is not as above.
    """
    outputs, per_request = check_sample_rows(
        logits, positions, requests, temperatures, top_ks, top_ps, min_ps, seeds,
        live, tokens, logprobs,
    )  # fmt: skip
    device = logits.device
    if tokens is None:
        tokens = torch.empty(outputs, dtype=torch.int64, device=device)
    if logprobs is None:
        logprobs = torch.empty(outputs, dtype=torch.float32, device=device)
    if outputs:
        launch(
            tuning_for(outputs, logits.shape[1], device),
            logits, positions, requests, per_request, temperatures, top_ks, top_ps, min_ps, seeds,
            filtered and not greedy, live, tokens, logprobs,
        )  # fmt: skip
    return tokens, logprobs if scored else logprobs[:0]


def launch(
    tuning: Tuning,
    logits: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor | None,
    per_request: int,
    temperatures: torch.Tensor,
    top_ks: torch.Tensor,
    top_ps: torch.Tensor,
    min_ps: torch.Tensor,
    seeds: torch.Tensor,
    filtered: bool,
    live: torch.Tensor | None,
    tokens: torch.Tensor,
    logprobs: torch.Tensor,
) -> None:
    """Launch checked arguments, cut as the tuning says."""
    slots, splits = tokens.shape[0], tuning.splits
    inspections = tuning.inspections if filtered and splits > 1 else 0
    passes = 1 + inspections if splits > 1 else 0
    floats = torch.empty(passes * slots * splits * 3, dtype=torch.float64, device=logits.device)
    ints = torch.empty(passes * slots * splits * 4, dtype=torch.int64, device=logits.device)
    high, low = weight_tables(logits.device) if filtered else (ints, ints)
    inputs = (
        logits, positions, positions if requests is None else requests,
        positions if live is None else live, temperatures, top_ks, top_ps, min_ps, seeds,
        high, low, floats, ints,
    )  # fmt: skip
    sizes = (logits.stride(0), logits.shape[1], max(1, per_request), slots * splits)
    options = {
        "LIVE": live is not None,
        "NAMED": requests is not None,
        "SPLITS": splits,
        "PARTS": triton.next_power_of_2(splits),
        "BLOCK": tuning.block,
        "num_warps": tuning.warps,
    }
    for number in range(passes):
        _pass_kernel[(slots, splits)](*inputs, *sizes, PASS=number, **options)
    _finish_kernel[(slots,)](
        *inputs, tokens, logprobs, *sizes, FILTERED=filtered, INSPECTED=inspections, **options
    )
