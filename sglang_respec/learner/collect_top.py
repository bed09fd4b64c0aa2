"""The target's distribution in each row, cut to its K likeliest tokens and the mass of the rest.

One pass over all rows of a step on the device, and one tensor to copy to the host: ids and the
bits of float32 numbers side by side. Legend: N rows, V vocabulary, K tokens listed.
"""

import torch
from torch import Tensor


def pack_top(
    logits: Tensor,  # [N, V] float
    divisors: Tensor,  # [N] float32, temperatures; 1 where the choice was greedy
    listed: int,  # K, at most V
) -> Tensor:  # [N, 2 K + 1] int32: ids, then bits of log-probabilities, then of the tail mass
    scaled = logits.float() / divisors[:, None]
    values, ids = scaled.topk(listed, dim=1, sorted=False)
    logprobs = values - scaled.logsumexp(1, keepdim=True)
    # Rounding may leave the listed mass a little above 1.
    tail = (1.0 - logprobs.double().exp().sum(1, keepdim=True)).clamp(min=0.0).float()
    floats = torch.cat([logprobs, tail], dim=1).contiguous()
    return torch.cat([ids.to(torch.int32), floats.view(torch.int32)], dim=1)


def unpack_top(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ids [N, K] int32, log-probabilities [N, K] float32, tail mass [N] float32."""
    listed = packed.shape[1] // 2
    floats = packed[:, listed:].contiguous().view(torch.float32)
    return packed[:, :listed].contiguous(), floats[:, :listed].contiguous(), floats[:, -1].clone()
