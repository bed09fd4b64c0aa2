"""What is inside the tensors of a pushed file: finite numbers, and a map that leads somewhere.

numpy, imported when needed: it starts threads as it loads, and the launcher forks.
"""

from __future__ import annotations

import os
from typing import Any

from sglang_respec.drafter.pace import PIECE_BYTES, Pace
from sglang_respec.drafter.reader import Tensor, read_blocks
from sglang_respec.drafter.schema import DrafterSchema, Match, Problem, map_problems

# Sign and mantissa aside, an exponent of ones is an infinity or no number.
_EXPONENT_BF16 = 0x7F80


def value_problems(
    path: str | os.PathLike[str],
    layout: dict[str, Tensor],
    match: Match,
    schema: DrafterSchema,
    pace: Pace,
) -> list[Problem]:
    """Read every tensor that will be written once; the target's own are left unread."""
    problems = [
        Problem(name, "holds values that are not finite")
        for name in match.take
        if name != match.d2t and not _all_finite(path, layout[name], pace)
    ]
    if match.d2t is not None:
        d2t = _integers(path, layout[match.d2t])
        t2d = _integers(path, layout[match.t2d]) if match.t2d is not None else None
        problems += map_problems(schema, d2t, [bool(each) for each in t2d] if t2d else None)
    return problems


def _all_finite(path: str | os.PathLike[str], tensor: Tensor, pace: Pace) -> bool:
    for block in read_blocks(path, tensor, PIECE_BYTES):
        if not _finite(block, tensor.dtype):
            return False
        pace.rest()
    return True


def _finite(block: bytearray, dtype: str) -> bool:
    import numpy as np

    if dtype == "BF16":
        exponents = np.frombuffer(block, "<u2") & _EXPONENT_BF16
        return not bool((exponents == _EXPONENT_BF16).any())
    return bool(np.isfinite(np.frombuffer(block, {"F32": "<f4", "F16": "<f2"}[dtype])).all())


def _integers(path: str | os.PathLike[str], tensor: Tensor) -> list[int]:
    import numpy as np

    kinds = {"I64": "<i8", "I32": "<i4", "BOOL": "u1", "U8": "u1", "I8": "i1"}
    content = b"".join(read_blocks(path, tensor, PIECE_BYTES))
    values: Any = np.frombuffer(content, kinds.get(tensor.dtype, "u1"))
    found: list[int] = values.tolist()
    return found
