"""How a row kernel is cut into programs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton

MAX_SPLITS = 64
_PROGRAMS_PER_SM = 4


@dataclass(frozen=True)
class Tuning:
    """A choice of block and grid. Results do not depend on it."""

    block: int  # cells of a row in registers at a time, a power of two
    splits: int  # programs that share a row
    warps: int  # of 32 threads, per program
    inspections: int = 2  # passes of filtered rows that are split; later ones take a row whole


@lru_cache(maxsize=1024)
def tuning_for(rows: int, vocabulary: int, device: torch.device) -> Tuning:
    """Return blocks of 16 cells per thread, and programs enough to fill the machine.

    A row is split only while there are fewer rows than programs that fit: then one program that
    read 600 KB alone would leave most of the machine idle.
    """
    block = min(4096, max(128, triton.next_power_of_2(vocabulary)))
    wanted = _PROGRAMS_PER_SM * _processors(device)
    blocks = triton.cdiv(vocabulary, block)
    splits = max(1, min(wanted // max(1, rows), blocks, MAX_SPLITS))
    return Tuning(block, splits, warps=max(1, block // 512))


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
