"""What a checkpoint directory says about itself: ``config.json`` and safetensors headers.

Standard library only, and no weights are read: a few milliseconds for any size of model.
"""

from __future__ import annotations

import array
import json
import math
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_respec.errors import RespecError

INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit

_ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
_INTEGER_CODES = {"I64": "q", "I32": "i", "I16": "h"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class TensorEntry:
    """One line of a safetensors header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int  # byte offset in the file
    end: int


def is_hub_id(location: str) -> bool:
    """Whether this names a model on a hub (``owner/name``) or a remote store, not a local path."""
    if Path(location).expanduser().exists():
        return False
    return "://" in location or _HUB_ID.fullmatch(location) is not None


def read_config(directory: Path, what: str) -> dict[str, Any]:
    """Read ``config.json``; ``what`` is ``target`` or ``drafter`` and goes into the message."""
    if not directory.is_dir():
        raise RespecError(
            f"The {what} {directory} is not a directory; give the directory that holds its "
            "config.json and weights, or a hub name."
        )
    return _read_json(directory / "config.json", what)


def read_tensors(directory: Path, what: str) -> dict[str, TensorEntry]:
    """Read the headers of all safetensors files of a checkpoint, by tensor name."""
    index = directory / INDEX_FILE
    if index.is_file():
        weight_map = _read_json(index, what).get("weight_map")
        if not isinstance(weight_map, dict):
            raise RespecError(f"{index} has no weight_map; export the {what} again.")
        files = sorted({directory / str(name) for name in weight_map.values()})
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        _refuse_without_safetensors(directory, what)
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        tensors.update(_read_header(file, what))
    return tensors


def read_integers(entry: TensorEntry) -> list[int]:
    """Read a small integer tensor, such as a vocabulary map."""
    code = _INTEGER_CODES.get(entry.dtype)
    if code is None:
        raise RespecError(
            f"{entry.name} in {entry.file} has type {entry.dtype}; export it as int64."
        )
    values = array.array(code)
    with entry.file.open("rb") as file:
        file.seek(entry.begin)
        values.frombytes(file.read(entry.end - entry.begin))
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RespecError(
            f"The {what} directory {path.parent} has no {path.name}; point at the directory of a "
            "Hugging Face checkpoint."
        ) from error
    except OSError as error:
        raise RespecError(
            f"{path} of the {what} cannot be read ({error.strerror}); check its permissions."
        ) from error
    except ValueError as error:  # bad JSON and bad UTF-8 alike
        raise RespecError(
            f"{path} of the {what} is not valid JSON ({error}); download or export it again."
        ) from error
    if not isinstance(value, dict):
        raise RespecError(f"{path} of the {what} is not a JSON object; export it again.")
    return value


def _refuse_without_safetensors(directory: Path, what: str) -> None:
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise RespecError(
            f"The {what} {directory} has its weights in pickle files (.bin, .pt), which can run "
            "code when loaded and are never opened here; convert them to safetensors."
        )
    raise RespecError(
        f"The {what} {directory} has no *.safetensors weights; finish the download or export it."
    )


def _read_header(file: Path, what: str) -> dict[str, TensorEntry]:
    """Read one header and hold it against the file: a truncated file must not reach the server."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 0 < length <= min(MAX_HEADER_BYTES, size - 8):
                raise _damaged(file, what, "its header does not fit in the file")
            header = json.loads(stream.read(length))
    except FileNotFoundError as error:
        raise _damaged(file, what, f"{INDEX_FILE} names it but it does not exist") from error
    except OSError as error:
        raise RespecError(
            f"{file} of the {what} cannot be read ({error.strerror}); check its permissions."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(file, what, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _damaged(file, what, "its header is not a table of tensors")
    data_start = 8 + length
    tensors = {
        name: _entry(file, what, name, fields, data_start, size)
        for name, fields in header.items()
        if name != "__metadata__"
    }
    if not tensors:
        raise _damaged(file, what, "it holds no tensors")
    return tensors


def _entry(
    file: Path, what: str, name: str, fields: Any, data_start: int, size: int
) -> TensorEntry:
    try:
        dtype, shape = fields["dtype"], tuple(fields["shape"])
        begin, end = fields["data_offsets"]
        whole = all(type(each) is int and each >= 0 for each in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole or not isinstance(dtype, str):
        raise _damaged(file, what, f"its header does not describe {name!r}")
    if not begin <= end <= size - data_start:
        raise _damaged(file, what, f"it ends before {name!r} does")
    if dtype in _ITEM_BYTES and end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _damaged(file, what, f"the bytes of {name!r} do not match its shape {list(shape)}")
    return TensorEntry(name, dtype, shape, file, data_start + begin, data_start + end)


def _damaged(file: Path, what: str, why: str) -> RespecError:
    return RespecError(
        f"{file.name} of the {what} in {file.parent} is damaged: {why}; "
        "download or export it again."
    )
