"""The format of a chunk of rollouts, checked by its header alone; needs no torch.

A chunk is one safetensors file. Per-rollout tensors have R entries; token-wise ones hold the
rollouts one after another. Legend as in :mod:`.samples`, sums over the rollouts of the chunk:

    format            I32 [1]          FORMAT_VERSION
    request_ids       U8  [bytes]      a JSON list of R texts
    token_counts, prompt_counts, first_aux         I32 [R]
    seeds, drafter_versions, policy_versions       I64 [R]
    temperatures      F32 [R]
    tokens            I32 [sum T]
    aux               BF16 | F16 | F32 [sum (T - 1 - F), A*H]
    top_ids           I32 [sum G, K]
    top_logprobs      F32 [sum G, K]
    tail_mass         F32 [sum G]
"""

import os
import struct

from sglang_respec.drafter.reader import BadFile, Tensor, read_blocks, read_layout
from sglang_respec.errors import RespecError

FORMAT_VERSION = 1
MAX_ROLLOUTS = 4096
MAX_LISTED = 4096  # K
MAX_ID_CHARS = 256
MAX_IDS_BYTES = MAX_ROLLOUTS * (MAX_ID_CHARS + 4)
MAX_HEADER_BYTES = 1 << 16

PER_ROLLOUT = {
    "token_counts": "I32", "prompt_counts": "I32", "first_aux": "I32", "seeds": "I64",
    "drafter_versions": "I64", "policy_versions": "I64", "temperatures": "F32",
}  # fmt: skip
DTYPES: dict[str, tuple[str, ...]] = {
    "format": ("I32",),
    "request_ids": ("U8",),
    **{name: (dtype,) for name, dtype in PER_ROLLOUT.items()},
    "tokens": ("I32",),
    "aux": ("BF16", "F16", "F32"),
    "top_ids": ("I32",),
    "top_logprobs": ("F32",),
    "tail_mass": ("F32",),
}
DIMS = {"aux": 2, "top_ids": 2, "top_logprobs": 2}  # the rest have one


class BadChunk(RespecError):  # noqa: N818 (it is what was found, not a kind of error)
    """Not a chunk of rollouts, or one that contradicts itself. Says what is wrong."""


def check_header(path: str | os.PathLike[str]) -> None:
    """Raise `BadChunk` unless the file's header is that of a chunk; values are not looked at."""
    try:
        layout = read_layout(path, max_header_bytes=MAX_HEADER_BYTES)
        _check_names(layout)
        _check_version(path, layout["format"])
    except BadFile as error:
        raise BadChunk(f"This is no chunk of rollouts: {error}") from error
    _check_shapes(layout)


def _check_names(layout: dict[str, Tensor]) -> None:
    missing, unknown = sorted(DTYPES.keys() - layout), sorted(layout.keys() - DTYPES)
    if missing or unknown:
        raise BadChunk(
            f"A chunk of rollouts has exactly the tensors of format {FORMAT_VERSION}; missing "
            f"{missing}, unknown {unknown[:8]}."
        )
    for name, tensor in layout.items():
        if tensor.dtype not in DTYPES[name] or len(tensor.shape) != DIMS.get(name, 1):
            raise BadChunk(
                f"{name} is {tensor.dtype} with {len(tensor.shape)} dimensions; a chunk has it as "
                f"{' or '.join(DTYPES[name])} with {DIMS.get(name, 1)}."
            )


def _check_version(path: str | os.PathLike[str], tensor: Tensor) -> None:
    if tensor.shape != (1,):
        raise BadChunk("format must hold one number; write chunks with encode_chunk.")
    (version,) = struct.unpack("<i", next(read_blocks(path, tensor, 4)))
    if version != FORMAT_VERSION:
        raise BadChunk(
            f"The chunk has format {version} and this learner reads {FORMAT_VERSION}; run server "
            "and learner of the same release."
        )


def _check_shapes(layout: dict[str, Tensor]) -> None:
    rollouts = layout["token_counts"].shape[0]
    generated, listed = layout["top_ids"].shape
    if not 1 <= rollouts <= MAX_ROLLOUTS or not 1 <= listed <= MAX_LISTED:
        raise BadChunk(
            f"A chunk holds 1 to {MAX_ROLLOUTS} rollouts with 1 to {MAX_LISTED} listed tokens; "
            f"this one has {rollouts} with {listed}."
        )
    expected = {
        **dict.fromkeys(PER_ROLLOUT, (rollouts,)),
        "top_logprobs": (generated, listed),
        "tail_mass": (generated,),
    }
    wrong = {n: layout[n].shape for n, shape in expected.items() if layout[n].shape != shape}
    if wrong:
        raise BadChunk(f"These shapes contradict the rest of the chunk: {wrong}.")
    if layout["request_ids"].shape[0] > MAX_IDS_BYTES or 0 in layout["aux"].shape:
        raise BadChunk("request_ids is too long or aux is empty; write chunks with encode_chunk.")
