"""A safetensors file that a stranger sent: its header is believed only where the bytes bear it out.

Standard library only. Nothing is mapped: a file that its owner shortens while we read is an error
here and would be a signal that ends the process there.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sglang_respec.errors import RespecError

PREFIX_BYTES = 8  # the header's length, little endian
MAX_HEADER_BYTES = 1 << 20  # a drafter's is a few thousand
MAX_TENSORS = 4096
MAX_DIMS = 8
MAX_NAME_CHARS = 256
METADATA = "__metadata__"

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip


class BadFile(RespecError):  # noqa: N818 (it is what was found, not a kind of error)
    """Not a safetensors file, or one that was cut or altered."""


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies in the file."""

    name: str
    dtype: str  # as safetensors spells it: F32, BF16, I64, ...
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


def read_layout(
    path: str | os.PathLike[str], *, max_header_bytes: int = MAX_HEADER_BYTES
) -> dict[str, Tensor]:
    """The tensors of a file by name, in the order of their bytes.

    Raises `BadFile` in one sentence unless the header describes the file exactly: every byte after
    the header belongs to one tensor, as the format demands, so a cut file cannot pass.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, data_start = _read_header(file, size, max_header_bytes)
    entries = [_entry(name, fields, data_start) for name, fields in header.items()]
    entries.sort(key=lambda each: (each.begin, each.end))
    _refuse_gaps(entries, data_start, size)
    return {each.name: each for each in entries}


def read_blocks(
    path: str | os.PathLike[str], tensor: Tensor, block_bytes: int
) -> Iterator[bytearray]:
    """The bytes of one tensor, a block at a time. Raises `BadFile` if the file became shorter."""
    with Path(path).open("rb", buffering=0) as file:
        file.seek(tensor.begin)
        left = tensor.nbytes
        while left:
            block = bytearray(min(block_bytes, left))
            _fill(file, block, tensor.name)
            left -= len(block)
            yield block


def read_whole(
    path: str | os.PathLike[str], tensor: Tensor, piece_bytes: int, after_piece: Callable[[], None]
) -> bytearray:
    """All bytes of one tensor in one buffer. Raises `BadFile` if the file became shorter."""
    whole = bytearray(tensor.nbytes)
    view = memoryview(whole)
    with Path(path).open("rb", buffering=0) as file:
        file.seek(tensor.begin)
        for start in range(0, tensor.nbytes, piece_bytes):
            _fill(file, view[start : start + piece_bytes], tensor.name)
            after_piece()
    return whole


def _fill(file: Any, block: bytearray | memoryview, name: str) -> None:
    view = memoryview(block)
    while view:
        count = file.readinto(view)
        if not count:
            raise BadFile(f"The file ended inside {name!r} while it was read; send it again.")
        view = view[count:]


def _read_header(file: BinaryIO, size: int, limit: int) -> tuple[dict[str, Any], int]:
    prefix = file.read(PREFIX_BYTES)
    if len(prefix) < PREFIX_BYTES:
        raise BadFile(
            f"The file has {size} bytes and a safetensors file begins with 8 that give the length "
            "of its header; send the whole file."
        )
    length = struct.unpack("<Q", prefix)[0]
    if length > limit:
        raise BadFile(
            f"The header claims {length} bytes and at most {limit} are read; "
            "send a safetensors file."
        )
    if length > size - PREFIX_BYTES:
        raise BadFile(
            f"The header claims {length} bytes and {size - PREFIX_BYTES} follow; "
            "the file was cut, send it again."
        )
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike
        if isinstance(error, BadFile):
            raise
        raise BadFile("The header is not JSON; send a safetensors file.") from error
    if not isinstance(header, dict):
        raise BadFile("The header is not a table of tensors; send a safetensors file.")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
        raise BadFile("The header's __metadata__ must map texts to texts; write the file again.")
    if not header:
        raise BadFile("The file holds no tensors; send the drafter's weights.")
    if len(header) > MAX_TENSORS:
        raise BadFile(f"The file names {len(header)} tensors and at most {MAX_TENSORS} are read.")
    return header, PREFIX_BYTES + length


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadFile(f"The header names {_shown(twice)} twice; write the file again.")
    return table


def _entry(name: str, fields: Any, data_start: int) -> Tensor:
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise BadFile(f"The header has a name that no tensor has: {_shown(name)}.")
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise BadFile(
            f"The header must give dtype, shape and data_offsets of {name!r} and nothing else; "
            "write the file again."
        )
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise BadFile(f"{name!r} has the type {_shown(dtype)}, which is none of safetensors'.")
    if not _sizes(shape) or len(shape) > MAX_DIMS:
        raise BadFile(f"The shape of {name!r} is not a list of up to {MAX_DIMS} sizes.")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadFile(f"The data_offsets of {name!r} are not a begin and an end.")
    begin, end = offsets
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != wanted:
        raise BadFile(
            f"{name!r} has {end - begin} bytes and its shape {shape} of {dtype} needs {wanted}; "
            "write the file again."
        )
    return Tensor(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _sizes(values: Any) -> bool:
    """A list of integers that a file could have."""
    return isinstance(values, list) and all(
        type(each) is int and 0 <= each < 1 << 62 for each in values
    )


def _refuse_gaps(entries: list[Tensor], data_start: int, size: int) -> None:
    position = data_start
    for each in entries:
        if each.begin != position:
            what = "overlap" if each.begin < position else "leave bytes between them"
            raise BadFile(
                f"The tensors {what} at {each.name!r}; a safetensors file has each byte in one "
                "tensor, so write it again."
            )
        position = each.end
    if position > size:
        raise BadFile(
            f"The file ends {position - size} bytes before its tensors do; "
            "it was cut, send it again."
        )
    if position < size:
        raise BadFile(
            f"{size - position} bytes follow the last tensor; "
            "send one safetensors file and nothing after it."
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
