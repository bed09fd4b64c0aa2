"""Whatever bytes arrive, the answer is tensors that lie in the file, or a sentence."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

from drafter_toys import SCHEMA, make_file
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_respec.drafter.pace import Pace
from sglang_respec.drafter.reader import BadFile, read_blocks, read_layout
from sglang_respec.drafter.schema import Declared, Match, match
from sglang_respec.drafter.values import value_problems

WHOLE = make_file(0.5)
HEADER_END = 8 + struct.unpack("<Q", WHOLE[:8])[0]
dtypes = st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X", ""])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": dtypes | json_values,
        "shape": st.lists(st.integers(-2, 40), max_size=4) | json_values,
        "data_offsets": st.lists(st.integers(-1, 200), min_size=2, max_size=2) | json_values,
    }
)


def outcome(content: bytes) -> str:
    """What a push of these bytes would meet, up to staging. Anything but a sentence is a defect."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "push"
        path.write_bytes(content)
        refusal = ""
        try:
            layout = read_layout(path)
        except BadFile as error:
            refusal = str(error)
        if refusal:
            assert "\n" not in refusal
            return "bad file"
        for tensor in layout.values():
            assert 8 <= tensor.begin <= tensor.end <= len(content)
            assert sum(len(block) for block in read_blocks(path, tensor, 16)) == tensor.nbytes
        fit = match(SCHEMA, [Declared(t.name, t.dtype, t.shape) for t in layout.values()])
        if not isinstance(fit, Match):
            assert all(str(each) for each in fit)
            return "wrong tensors"
        return "wrong values" if value_problems(path, layout, fit, SCHEMA, Pace(1)) else "fits"


def test_the_whole_file_fits():
    assert outcome(WHOLE) == "fits"


@given(st.binary(max_size=300))
def test_random_bytes(content):
    assert outcome(content) == "bad file"


@given(st.integers(0, HEADER_END - 1), st.binary(min_size=1, max_size=4))
def test_an_altered_header(position, patch):
    outcome(WHOLE[:position] + patch + WHOLE[position + len(patch) :])


@given(st.integers(HEADER_END, len(WHOLE) - 1), st.integers(0, 255))
def test_an_altered_value_is_never_a_damaged_file(position, value):
    altered = WHOLE[:position] + bytes([value]) + WHOLE[position + 1 :]
    assert outcome(altered) in ("fits", "wrong values")


@given(
    st.dictionaries(st.text(max_size=8), entries | json_values, max_size=4), st.binary(max_size=99)
)
def test_any_header_and_data(header, data):
    text = json.dumps(header).encode()
    outcome(struct.pack("<Q", len(text)) + text + data)


@settings(max_examples=200)
@given(st.data())
def test_tensors_in_any_order_under_any_of_their_names(data):
    length = struct.unpack("<Q", WHOLE[:8])[0]
    header = json.loads(WHOLE[8 : 8 + length])
    names = data.draw(st.permutations(list(header)))
    prefixes = {name: data.draw(st.sampled_from(["", "model."])) for name in names}
    spelt = {
        prefixes[n] + (n.replace("layers.0.", "midlayer.") if data.draw(st.booleans()) else n):
        header[n] for n in names
    }  # fmt: skip
    text = json.dumps(spelt).encode()
    assert outcome(struct.pack("<Q", len(text)) + text + WHOLE[8 + length :]) == "fits"
