"""Seeds of requests, carried to the sampler."""

import secrets
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.runtime_context import get_exec

SEED_BITS = 63  # SGLang takes signed 64-bit seeds


def carry_seeds(info: Any, _: type, batch: Any, *__: Any, **___: Any) -> None:
    """Puts each request's seed into its batch's sampling info; runs after SGLang made it.

    A request without a seed draws one and keeps it, so that it goes on with the same stream
    in every later batch. Only SGLang's PyTorch sampler takes seeds.
    """
    if get_exec().kernel.sampling_backend != "pytorch":
        return
    for request in batch.reqs:
        if request.sampling_params.sampling_seed is None:
            request.sampling_params.sampling_seed = secrets.randbits(SEED_BITS)
    seeds = [request.sampling_params.sampling_seed for request in batch.reqs]
    info.sampling_seed = torch.tensor(seeds, dtype=torch.int64).to(batch.device, non_blocking=True)


def filter_min_p_first(
    original: Callable[..., Any],
    probs: torch.Tensor,
    top_ks: torch.Tensor,
    top_ps: torch.Tensor,
    min_ps: torch.Tensor,
    need_min_p_sampling: bool,
    sampling_seed: torch.Tensor | None,
    positions: torch.Tensor,
    **kwargs: Any,
) -> Any:
    """Applies min-p before SGLang's seeded top-k/top-p sampler, which refuses it.

    The result is the same: min-p drops the least probable tokens, so neither the rank nor
    the cumulative mass in front of any kept token changes.
    """
    if need_min_p_sampling and sampling_seed is not None:
        threshold = probs.amax(-1, keepdim=True) * min_ps.view(-1, 1)
        probs = torch.where(probs < threshold, 0.0, probs)
        need_min_p_sampling = False
    return original(
        probs, top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions, **kwargs
    )
