"""A safetensors file that was cut or altered is refused in one sentence, never a traceback."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sglang_respec.drafter.checkpoint import read_tensors
from sglang_respec.errors import RespecError

HEADER = json.dumps(
    {
        "fc.weight": {"dtype": "F32", "shape": [2, 6], "data_offsets": [0, 48]},
        "d2t": {"dtype": "I64", "shape": [3], "data_offsets": [48, 72]},
    }
).encode()
WHOLE = struct.pack("<Q", len(HEADER)) + HEADER + bytes(72)


def read(content: bytes) -> set[str] | None:
    """Names of the tensors, or None when the file was refused."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.safetensors").write_bytes(content)
        try:
            return set(read_tensors(Path(folder), "drafter"))
        except RespecError as error:
            refusal = str(error)
    assert "model.safetensors" in refusal
    assert "\n" not in refusal
    return None


def test_the_whole_file_is_read():
    assert read(WHOLE) == {"fc.weight", "d2t"}


@given(st.integers(0, len(WHOLE) - 1))
def test_every_cut_is_refused(length):
    assert read(WHOLE[:length]) is None


@given(st.binary(max_size=64))
def test_random_bytes_are_refused(content):
    assert read(content) is None


@given(st.integers(0, 8 + len(HEADER) - 1), st.integers(0, 255))
def test_one_altered_header_byte_is_read_or_refused(position, value):
    read(WHOLE[:position] + bytes([value]) + WHOLE[position + 1 :])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=6), json_values, max_size=3))
def test_any_json_header_is_read_or_refused(header):
    text = json.dumps(header).encode()
    read(struct.pack("<Q", len(text)) + text + bytes(16))
