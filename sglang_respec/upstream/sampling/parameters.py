"""What the sampling kernels are told of a batch."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class SamplingParameters:
    """The keyword arguments of `sample_rows`, one entry per request."""

    temperatures: torch.Tensor  # [B] f32
    top_ks: torch.Tensor  # [B] i32
    top_ps: torch.Tensor  # [B] f32
    min_ps: torch.Tensor  # [B] f32
    seeds: torch.Tensor  # [B] i64
    filtered: bool
    greedy: bool

    @classmethod
    def of(cls, info: Any) -> "SamplingParameters":
        """From SGLang's `SamplingBatchInfo`. SGLang writes temperature 0 as top-k 1."""
        return cls(
            temperatures=info.temperatures.view(-1),
            top_ks=info.top_ks,
            top_ps=info.top_ps,
            min_ps=info.min_ps,
            seeds=info.sampling_seed,
            filtered=bool(
                info.need_top_k_sampling or info.need_top_p_sampling or info.need_min_p_sampling
            ),
            greedy=bool(info.is_all_greedy),
        )
