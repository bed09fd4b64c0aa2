"""sample_rows in PyTorch: the CPU path, and the judge of the Triton kernel of the same name.

Mathematics
    t_v = logits_v / T, rounded to float32 once. A row's token and its logprob are

        x = argmax over allowed v of  t_v + g(seed, position, v)     (float64, lowest id on ties)
        logprob = log softmax(t)_x                                   (float32, unfiltered)

    with g of ``noise.py`` and the allowed set of ``allowed.py``. Greedy rows (top_k = 1) have
    no noise: the lowest id among the largest t.
    A row is unusable when its softmax is undefined: it holds a NaN, a +inf (or t overflows to
    +inf), or nothing but -inf. Its token is -1 and its logprob NaN; other rows are untouched.
Agreement
    For an unfiltered row this is the token of SGLang's ``multinomial_with_seed`` on ``t``. SGLang
    itself passes log(softmax(t)), which is t less a constant but for float32 rounding: the two
    choices differ only where the best two scores lie within about 1e-6 of each other.
Memory
    Rows are taken in slices of at most 2^20 cells, so temporaries (two f64, two i32, two f32 per
    cell) stay near 40 MB whatever R and V. Nothing depends on the data.
"""

from __future__ import annotations

from functools import lru_cache
from math import isfinite

import numpy as np
import torch

from respec_kernels.reference.allowed import allowed
from respec_kernels.reference.noise import (
    hash_ids,
    negative_gumbel,
    row_states,
    scrambled_vocabulary,
    seed_states,
)
from respec_kernels.sampling_checks import check_sample_rows

CELLS = 1 << 20  # of a slice


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
        greedy: a promise that all rows are greedy (top_k = 1): no noise is computed.
        scored: False where nobody reads the logprobs: the second output is then of no length.
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
    device, step = logits.device, max(1, CELLS // logits.shape[1])
    tokens = torch.empty(outputs, dtype=torch.int64, device=device) if tokens is None else tokens
    if logprobs is None:
        logprobs = torch.empty(outputs if scored else 0, dtype=torch.float32, device=device)
    states = None if greedy else seed_states(seeds)
    for start in range(0, outputs, step):
        part = slice(start, min(start + step, outputs))
        rows, owners = _rows_and_owners(live, requests, per_request, part, device)
        cells = logits[part] if rows is None else logits.index_select(0, rows)
        scaled = cells.to(torch.float32) / of_rows(temperatures, owners)[:, None]
        if states is None:
            chosen = scaled.argmax(1, keepdim=True)
        else:
            row_positions = positions[part] if rows is None else positions.index_select(0, rows)
            row_top_ks = of_rows(top_ks, owners)
            scores = perturbed(
                scaled, row_states(of_rows(states, owners), row_positions), row_top_ks
            )
            if filtered:
                may = allowed(scaled, row_top_ks, of_rows(top_ps, owners), of_rows(min_ps, owners))
                scores.masked_fill_(may.logical_not_(), -torch.inf)
            chosen = scores.argmax(1, keepdim=True)
        if scored:
            # NaN for the whole row exactly when the row is unusable.
            chances = scaled.log_softmax(1).gather(1, chosen)
            unusable = chances.isnan()
        else:
            largest = scaled.gather(1, chosen) if greedy else scaled.amax(1, keepdim=True)
            unusable = largest.isfinite().logical_not_()
        if live is not None:
            unusable |= live[part, None] < 0
        chosen.masked_fill_(unusable, -1)
        tokens[part] = chosen[:, 0]
        if scored:
            logprobs[part] = chances.masked_fill_(unusable, torch.nan)[:, 0]
    return tokens, logprobs


def likeliest(
    logits: torch.Tensor,  # [R, V] f32|bf16 on a CPU
    temperatures: torch.Tensor | None,  # [R] f32 > 0; None: all 1
) -> torch.Tensor:
    """[R] i64: the tokens of ``sample_rows(greedy=True, scored=False)``, with -1 as there.

    For decode steps on a CPU, where a small model's step feels each operation: in NumPy on the
    tensors' own memory, whose argmax over many rows or a large vocabulary is several times faster.
    """
    cells = logits.to(torch.float32).numpy()
    if temperatures is not None:
        cells = cells / temperatures.numpy()[:, None]
    chosen = cells.argmax(1)
    largest = cells[np.arange(len(chosen)), chosen]  # a NaN wins every argmax
    if not isfinite(sum(largest.tolist())):  # in float64, which finite float32 cannot overflow
        chosen[~np.isfinite(largest)] = -1
    return torch.from_numpy(chosen)


def perturbed(
    scaled: torch.Tensor,  # [R, V] f32, t = logits / T
    states: torch.Tensor,  # [R] i32, of noise.row_states
    top_ks: torch.Tensor,  # [R] i32
    scrambled: torch.Tensor | None = None,  # [V] i32, of noise.scramble_ids; None: ids 0, 1, ..
) -> torch.Tensor:
    """[R, V] f64: t + g, without noise in greedy rows."""
    if scrambled is None:
        scrambled = scrambled_vocabulary(scaled.shape[1], scaled.device)
    noise = negative_gumbel(hash_ids(states, scrambled))
    noise.masked_fill_((top_ks == 1)[:, None], 0)
    return torch.sub(scaled, noise, out=noise)


def _rows_and_owners(
    live: torch.Tensor | None,
    requests: torch.Tensor | None,
    per_request: int,
    part: slice,
    device: torch.device,
) -> tuple[torch.Tensor | None, torch.Tensor | slice]:
    """The rows of this slice (None: the slice itself) and the request of each."""
    if live is not None:
        rows = live[part].clamp(min=0)
        if requests is not None:
            return rows, requests.index_select(0, rows)
        return rows, rows if per_request == 1 else rows // per_request
    if requests is not None:
        return None, requests[part]
    return None, row_owners(part, per_request, device)


def row_owners(part: slice, per_request: int, device: torch.device) -> torch.Tensor | slice:
    """The request of each row of this slice, when every request has as many rows."""
    return part if per_request == 1 else _owners(part.start, part.stop, per_request, device)


@lru_cache(maxsize=256)
def _owners(start: int, stop: int, per_request: int, device: torch.device) -> torch.Tensor:
    return torch.arange(start, stop, device=device) // per_request


def of_rows(parameter: torch.Tensor, owners: torch.Tensor | slice) -> torch.Tensor:
    """A parameter of requests, row by row."""
    return parameter[owners] if isinstance(owners, slice) else parameter.index_select(0, owners)
