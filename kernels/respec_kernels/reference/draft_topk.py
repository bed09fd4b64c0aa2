"""draft_topk in PyTorch: the CPU path, and the judge of the Triton kernel of the same name.

Mathematics
    The drafter ranks its tokens by what the target will rank its own by, the same noise included:

        s_v = t_v + g(seed, position, id(v)),   t = logits / T,   id(v) = token_map[v] or v

    The ``k`` largest are the candidates, and softmax(s) at them estimates the chance that this
    child is the target's choice: the noise is known, only the target's logits are not. Greedy rows
    (top_k = 1) have no noise, so theirs is the drafter's own softmax. Scores are float64, ties go
    to the lowest draft id.
    An unusable row (see ``sample_rows``) and a slot for which no token is left that is not -inf
    hold draft id 0 with probability 0: a valid token that nobody prefers.
Memory
    As in ``sample_rows``: slices of 2^20 cells.
"""

from __future__ import annotations

import torch

from respec_kernels.reference.noise import row_states, scramble_ids, seed_states
from respec_kernels.reference.sample_rows import CELLS, of_rows, perturbed, row_owners
from respec_kernels.sampling_checks import check_draft_topk


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
        greedy: a promise that all rows are greedy (top_k = 1): no noise is computed.

    Returns:
        ``probs`` ``[R, k]`` f32 and ``ids`` ``[R, k]`` i64, draft ids, the best first.

    Raises:
        ValueError: a shape, dtype, device or stride is not as above, or k is out of range.
    """
    per_request = check_draft_topk(
        logits, positions, requests, temperatures, top_ks, seeds, token_map, k
    )
    (rows, vocabulary), device = logits.shape, logits.device
    probs = torch.empty(rows, k, dtype=torch.float32, device=device)
    ids = torch.empty(rows, k, dtype=torch.int64, device=device)
    states = None if greedy else seed_states(seeds)
    scrambled = None if greedy or token_map is None else scramble_ids(token_map)
    step = max(1, CELLS // vocabulary)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        owners = row_owners(part, per_request, device) if requests is None else requests[part]
        scaled = logits[part].to(torch.float32) / of_rows(temperatures, owners)[:, None]
        if states is None:
            scores = scaled
        else:
            row_state = row_states(of_rows(states, owners), positions[part])
            scores = perturbed(scaled, row_state, of_rows(top_ks, owners), scrambled)
        chances = scores.log_softmax(1)
        score, best = _best(scores, k)
        # NaN: an unusable row.
        chance = chances.gather(1, best)
        empty = chance.isnan().logical_or_(score == -torch.inf)
        ids[part] = best.masked_fill_(empty, 0)
        probs[part] = chance.exp_().masked_fill_(empty, 0)
    return probs, ids


def _best(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest scores and their columns, ``[R, k]``, ties to the lowest; overwrites scores.

    One maximum per candidate: torch.topk leaves the order of ties open.
    """
    best = [scores.max(1, keepdim=True)]
    for _ in range(k - 1):
        scores.scatter_(1, best[-1].indices, -torch.inf)
        best.append(scores.max(1, keepdim=True))
    return torch.cat([each.values for each in best], 1), torch.cat([e.indices for e in best], 1)
