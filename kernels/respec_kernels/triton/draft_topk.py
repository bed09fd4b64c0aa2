"""draft_topk in Triton: one read of each draft row, at most 16 exact candidates in registers.

Mathematics
    As in ``reference/draft_topk.py``. A program keeps the k best tokens so far with their exact
    scores (float64), in no order. A token whose w / E lies below the floor of the worst of them
    (``race.py``, its errors and its slack) cannot enter; the others are scored in float64, best
    ratio first, and take the worst one's place. Greedy rows compare t itself, which float32 holds
    exactly. Every token adds w / E to the sum that normalises the probabilities, so here each one
    takes a logarithm.
Launches
    One launch, one program per row, or for few rows ``splits`` programs per row, and a second
    launch that merges their lists.
Memory
    Rows are read once. Scratch is 16 + 12 * k bytes per row and split. Nothing waits for the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from respec_kernels.sampling_checks import check_draft_topk
from respec_kernels.triton.noise import exact_noise, hash_ids, rate, row_state
from respec_kernels.triton.race import LOG2_E, NOBODY, ROUNDING, SLACK, divided, floor_of
from respec_kernels.triton.tuning import Tuning, tuning_for


@triton.jit
def _enter(scores, ids, slots, score, token, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The list, its worst entry replaced if the newcomer is better; and the worst score then."""
    inside = slots < K
    worst = tl.min(tl.where(inside, scores, float("inf")), 0)
    last = tl.max(tl.where(inside & (scores == worst), ids, -1), 0)
    better = (score > worst) | ((score == worst) & (token < last))
    here = inside & (ids == last)
    scores = tl.where(here, tl.where(better, score, worst), scores)
    ids = tl.where(here, tl.where(better, token, last), ids)
    return scores, ids, tl.min(tl.where(inside, scores, float("inf")), 0)


@triton.jit
def _bar(worst, peak, greedy):  # type: ignore[no-untyped-def]
    """What a rank must exceed to enter the list: f32, -inf is below it."""
    bar = worst.to(tl.float32)  # a greedy row's t is a float32; a later equal has a higher id
    if not greedy:
        floor = floor_of(worst, peak, SLACK)
        bar = tl.where(floor > 0.0, floor, -0.5)  # ratios may be 0
    return bar


@triton.jit
def _scan(  # type: ignore[no-untyped-def]
    row_ptr, map_ptr, first, end, temperature, greedy, state,
    MAPPED: tl.constexpr, K: tl.constexpr, LIST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Largest logit, sum of exp((z - largest) / T + g), and the list of the k best."""
    per_bit = tl.div_rn(tl.full([], LOG2_E, tl.float32), temperature)
    slots = tl.arange(0, LIST)
    largest = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    worst = tl.full([], float("-inf"), tl.float64)
    scores = tl.full([LIST], float("-inf"), tl.float64)
    ids = slots * -1 + NOBODY  # all different, so that exactly one is the last
    for start in range(first, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < end
        logits = tl.load(row_ptr + columns, mask=inside, other=float("-inf")).to(tl.float32)
        names = columns.to(tl.int64)
        if MAPPED:
            names = tl.load(map_ptr + columns, mask=inside, other=0)
        before = largest
        largest = tl.maximum(largest, tl.max(logits, 0))
        origin = tl.where(largest == float("-inf"), 0.0, largest)
        weight = tl.exp2((logits - origin) * per_bit)
        wait = tl.full([BLOCK], 1.0, tl.float32)  # E; a greedy row has none
        if not greedy:
            wait = rate(hash_ids(state, names))
        weight = weight / wait
        total = total * tl.exp2((before - origin) * per_bit) + tl.sum(weight, 0)
        peak = tl.div_rn(largest, temperature)
        if (total < float("inf")) & (peak < float("inf")):
            loose = floor_of(worst, peak, SLACK + ROUNDING * tl.abs(peak))
            hopeful = (logits > float("-inf")) & (weight >= loose)
            if tl.max(hopeful.to(tl.int32), 0) > 0:
                rank = divided(logits, temperature)
                if not greedy:
                    rank = tl.exp2((rank - peak) * LOG2_E) / wait
                rank = tl.where(hopeful, rank, float("-inf"))
                top, at = tl.max(rank, 0, return_indices=True)
                while top > _bar(worst, peak, greedy):
                    token = start + at
                    t = tl.div_rn(tl.load(row_ptr + token).to(tl.float32), temperature)
                    score = t.to(tl.float64)
                    if not greedy:
                        name = token.to(tl.int64)
                        if MAPPED:
                            name = tl.load(map_ptr + token)
                        score += exact_noise(hash_ids(state, name))
                    scores, ids, worst = _enter(scores, ids, slots, score, token, K)
                    rank = tl.where(columns == token, float("-inf"), rank)
                    top, at = tl.max(rank, 0, return_indices=True)
    return largest, total, scores, ids


@triton.jit
def _emit(  # type: ignore[no-untyped-def]
    probs_ptr, ids_ptr, row, largest, total, temperature, scores, ids, K: tl.constexpr
):
    """Write the k best of a list, best first, with their probabilities."""
    peak = tl.div_rn(largest, temperature)
    usable = (total < float("inf")) & (largest > float("-inf")) & (peak < float("inf"))
    # Relative to largest / T itself, as the sum is.
    origin = largest.to(tl.float64) / temperature.to(tl.float64)
    log_total = tl.log(total.to(tl.float64))
    for place in tl.static_range(K):
        best = tl.max(scores, 0)
        token = tl.min(tl.where(scores == best, ids, NOBODY), 0)
        taken = usable & (best > float("-inf"))
        prob = tl.exp((best - origin - log_total).to(tl.float32))
        # A row's only token with a hash of 0 has all of a sum that underflowed.
        prob = tl.where(taken, tl.minimum(prob, 1.0), 0.0)
        tl.store(probs_ptr + row * K + place, prob)
        tl.store(ids_ptr + row * K + place, tl.where(taken, token, 0).to(tl.int64))
        scores = tl.where(ids == token, float("-inf"), scores)


@triton.jit
def _draft_topk_kernel(  # type: ignore[no-untyped-def]  # Triton gives annotations a meaning
    logits_ptr,  # [R, V] f32|bf16
    positions_ptr,  # [R] i64
    requests_ptr,  # [R] i64
    temperatures_ptr,  # [B] f32
    top_ks_ptr,  # [B] i32
    seeds_ptr,  # [B] i64
    map_ptr,  # [V] i64
    sums_ptr,  # [R, SPLITS, 2] f32: largest, total
    scores_ptr,  # [R, SPLITS, LIST] f64
    places_ptr,  # [R, SPLITS, LIST] i32
    probs_ptr,  # [R, K] f32
    ids_ptr,  # [R, K] i64
    row_stride,
    vocabulary,
    per_request,
    MAPPED: tl.constexpr,
    NAMED: tl.constexpr,
    K: tl.constexpr,
    LIST: tl.constexpr,  # K rounded up to a power of two, 2 at least
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    owner = row // per_request
    if NAMED:
        owner = tl.load(requests_ptr + row)
    temperature = tl.load(temperatures_ptr + owner)
    greedy = tl.load(top_ks_ptr + owner) == 1
    state = row_state(tl.load(seeds_ptr + owner), tl.load(positions_ptr + row))
    cells = tl.cdiv(tl.cdiv(vocabulary, BLOCK), SPLITS) * BLOCK
    first = split * cells
    largest, total, scores, ids = _scan(
        logits_ptr + row * row_stride, map_ptr, first, tl.minimum(first + cells, vocabulary),
        temperature, greedy, state, MAPPED, K, LIST, BLOCK,
    )  # fmt: skip
    if SPLITS == 1:
        _emit(probs_ptr, ids_ptr, row, largest, total, temperature, scores, ids, K)
    else:
        cell = row * SPLITS + split
        slots = tl.arange(0, LIST)
        tl.store(sums_ptr + cell * 2, largest)
        tl.store(sums_ptr + cell * 2 + 1, total)
        tl.store(scores_ptr + cell * LIST + slots, tl.where(slots < K, scores, float("-inf")))
        tl.store(places_ptr + cell * LIST + slots, ids)


@triton.jit
def _merge_kernel(  # type: ignore[no-untyped-def]  # Triton gives annotations a meaning
    requests_ptr,  # as in _draft_topk_kernel
    temperatures_ptr,
    sums_ptr,
    scores_ptr,
    places_ptr,
    probs_ptr,
    ids_ptr,
    per_request,
    NAMED: tl.constexpr,
    K: tl.constexpr,
    LIST: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,  # SPLITS rounded up to a power of two
):
    row = tl.program_id(0).to(tl.int64)
    owner = row // per_request
    if NAMED:
        owner = tl.load(requests_ptr + row)
    temperature = tl.load(temperatures_ptr + owner)
    part = tl.arange(0, PARTS)
    sums = sums_ptr + (row * SPLITS + part) * 2
    largests = tl.load(sums, mask=part < SPLITS, other=float("-inf"))
    totals = tl.load(sums + 1, mask=part < SPLITS, other=0.0)
    largest = tl.max(largests, 0)
    origin = tl.where(largest == float("-inf"), 0.0, largest)
    per_bit = tl.div_rn(tl.full([], LOG2_E, tl.float32), temperature)
    total = tl.sum(totals * tl.exp2((largests - origin) * per_bit), 0)
    entry = tl.arange(0, PARTS * LIST)
    inside = entry < SPLITS * LIST
    at = row * SPLITS * LIST + entry
    scores = tl.load(scores_ptr + at, mask=inside, other=float("-inf"))
    ids = tl.load(places_ptr + at, mask=inside, other=NOBODY)
    _emit(probs_ptr, ids_ptr, row, largest, total, temperature, scores, ids, K)


def draft_topk(
    logits: torch.Tensor,  # [R, Vd] f32|bf16, the drafter's; any row stride
    positions: torch.Tensor,  # [R] i64, hashed: that of the token being guessed
    requests: torch.Tensor | None,  # [R] i64 row -> request; None: row r is of request r // (R / B)
    temperatures: torch.Tensor,  # [B] f32 > 0
    top_ks: torch.Tensor,  # [B] i32; 1 = greedy, no noise; else unread
    seeds: torch.Tensor,  # [B] i64
    token_map: torch.Tensor | None,  # [Vd] i64 draft id -> target id; None: the same
    k: int,
    *,
    greedy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose each row's k best draft tokens under the target's noise.

    Args:
        k: candidates per row, 1 to 16.
        greedy: a promise that all rows are greedy (top_k = 1): nothing is left to choose here,
            a greedy row takes its own branch.

    Returns:
        ``probs`` ``[R, k]`` f32 and ``ids`` ``[R, k]`` i64, draft ids, the best first.

    Raises:
        ValueError: a shape, dtype, device or stride is not as above, or k is out of range.
    """
    per_request = check_draft_topk(
        logits, positions, requests, temperatures, top_ks, seeds, token_map, k
    )
    rows, device = logits.shape[0], logits.device
    probs = torch.empty(rows, k, dtype=torch.float32, device=device)
    ids = torch.empty(rows, k, dtype=torch.int64, device=device)
    if rows:
        tuning = tuning_for(rows, logits.shape[1], device)
        launch(
            tuning, logits, positions, requests, per_request, temperatures, top_ks, seeds,
            token_map, probs, ids,
        )  # fmt: skip
    return probs, ids


def launch(
    tuning: Tuning,
    logits: torch.Tensor,
    positions: torch.Tensor,
    requests: torch.Tensor | None,
    per_request: int,
    temperatures: torch.Tensor,
    top_ks: torch.Tensor,
    seeds: torch.Tensor,
    token_map: torch.Tensor | None,
    probs: torch.Tensor,
    ids: torch.Tensor,
) -> None:
    """Launch checked arguments, cut as the tuning says."""
    (rows, k), splits, device = probs.shape, tuning.splits, logits.device
    entries = max(2, triton.next_power_of_2(k))
    cells = rows * splits if splits > 1 else 0
    sums = torch.empty(cells * 2, dtype=torch.float32, device=device)
    scores = torch.empty(cells * entries, dtype=torch.float64, device=device)
    places = torch.empty(cells * entries, dtype=torch.int32, device=device)
    named = positions if requests is None else requests
    shape = {"NAMED": requests is not None, "K": k, "LIST": entries, "SPLITS": splits}
    _draft_topk_kernel[(rows, splits)](
        logits, positions, named, temperatures, top_ks, seeds,
        positions if token_map is None else token_map, sums, scores, places, probs, ids,
        logits.stride(0), logits.shape[1], max(1, per_request),
        MAPPED=token_map is not None, BLOCK=tuning.block, num_warps=tuning.warps, **shape,
    )  # fmt: skip
    if splits > 1:
        _merge_kernel[(rows,)](
            named, temperatures, sums, scores, places, probs, ids, max(1, per_request),
            PARTS=triton.next_power_of_2(splits), num_warps=1, **shape,
        )  # fmt: skip
