"""A pushed safetensors file is read exactly or refused in one sentence."""

from __future__ import annotations

import json
import struct

import pytest
from drafter_toys import make_file, zeros

from sglang_respec.drafter.reader import BadFile, read_blocks, read_layout


@pytest.fixture
def write(tmp_path):
    def write(content: bytes):
        path = tmp_path / "push.safetensors"
        path.write_bytes(content)
        return path

    return write


def with_header(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def test_a_whole_file_is_read(write):
    layout = read_layout(write(make_file(1.5)))
    assert layout["norm.weight"].shape == (4,)
    assert layout["d2t"].dtype == "I64"
    (block,) = read_blocks(write(make_file(1.5)), layout["norm.weight"], 1 << 20)
    assert struct.unpack("<4f", block) == (1.5,) * 4


def test_metadata_empty_tensors_and_scalars_are_read(write):
    header = {
        "__metadata__": {"format": "pt"},
        "none": entry(shape=(0,), offsets=(0, 0)),
        "one": entry(shape=(), offsets=(0, 4)),
    }
    assert read_layout(write(with_header(header, bytes(4))))["one"].shape == ()


def test_blocks_of_any_size_give_the_same_bytes(write):
    path = write(with_header({"a": entry("U8", (1000,), (0, 1000))}, bytes(range(250)) * 4))
    tensor = read_layout(path)["a"]
    for size in (1, 7, 999, 1000, 5000):
        assert b"".join(read_blocks(path, tensor, size)) == bytes(range(250)) * 4


def test_a_file_that_shrinks_while_it_is_read_is_an_error(write):
    path = write(make_file())
    layout = read_layout(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadFile, match="ended inside"):
        list(read_blocks(path, layout["d2t"], 1 << 20))


BAD_FILES = {
        "empty": (b"", "0 bytes"),
        "seven bytes": (bytes(7), "7 bytes"),
        "no header": (bytes(8), "not JSON"),
        "html": (b"<!DOCTYPE html><html></html>", "claims"),
        "pickle": (b"\x80\x04\x95" + bytes(30), "claims"),
        "zip of torch.save": (b"PK\x03\x04" + bytes(60), "claims"),
        "a header of a gigabyte": (struct.pack("<Q", 1 << 30) + b"{}", "at most"),
        "a header of 2^64-1": (struct.pack("<Q", (1 << 64) - 1) + b"{}", "at most"),
        "a header longer than the file": (with_header({"a": entry()}, b"", 500), "was cut"),
        "a header shorter than it is": (with_header({"a": entry()}, bytes(8), 9), "not JSON"),
        "a header that is no UTF-8": (with_header(b'{"\xff": 1}'), "not JSON"),
        "a list": (with_header([1, 2]), "not a table"),
        "a number": (with_header(b"7"), "not a table"),
        "deep nesting": (with_header(b"[" * 60000), "not JSON"),
        "a huge number": (with_header(b'{"a": ' + b"9" * 9000 + b"}"), "not JSON"),
        "no tensors": (with_header({}, b""), "no tensors"),
        "metadata alone": (with_header({"__metadata__": {}}, b""), "no tensors"),
        "metadata that is no table": (with_header({"__metadata__": 3, "a": entry()}), "texts"),
        "metadata of numbers": (with_header({"__metadata__": {"a": 1}, "a": entry()}), "texts"),
        "a name twice": (with_header(b'{"a": 1, "a": 2}'), "'a' twice"),
        "a field twice": (with_header(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "twice"),
        "a name with a line break": (with_header({"a\nb": entry()}), "no tensor has"),
        "a name of a kilobyte": (with_header({"a" * 1000: entry()}), "no tensor has"),
        "an entry that is a number": (with_header({"a": 3}), "must give"),
        "no shape": (with_header({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), "must give"),
        "one field more": (with_header({"a": entry(code="x")}), "nothing else"),
        "an unknown type": (with_header({"a": entry("F128")}), "none of safetensors"),
        "a type that is a list": (with_header({"a": entry(["F32"])}), "none of safetensors"),
        "a shape that is a number": (with_header({"a": {**entry(), "shape": 2}}), "shape of"),
        "a negative size": (with_header({"a": entry(shape=(-2,))}), "shape of"),
        "a size that is true": (with_header({"a": entry(shape=(True,))}), "shape of"),
        "a size with a point": (with_header({"a": entry(shape=(2.0,))}), "shape of"),
        "a size beyond all memory": (with_header({"a": entry(shape=(1 << 70,))}), "shape of"),
        "nine dimensions": (with_header({"a": entry(shape=(1,) * 9)}), "shape of"),
        "sizes that overflow": (with_header({"a": entry(shape=(1 << 40, 1 << 40))}), "needs"),
        "offsets backwards": (with_header({"a": entry(offsets=(8, 0))}), "begin and an end"),
        "three offsets": (with_header({"a": entry(offsets=(0, 4, 8))}), "begin and an end"),
        "offsets that are text": (with_header({"a": entry(offsets="08")}), "begin and an end"),
        "a negative offset": (with_header({"a": entry(offsets=(-8, 0))}), "begin and an end"),
        "offsets out of range": (with_header({"a": entry(offsets=(8, 16))}), "leave bytes"),
        "too few bytes for the shape": (with_header({"a": entry(offsets=(0, 4))}), "needs 8"),
        "overlapping tensors": (
            with_header({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "overlap"),
        "the same bytes twice": (with_header({"a": entry(), "b": entry()}), "overlap"),
        "bytes between tensors": (
            with_header({"a": entry(), "b": entry(offsets=(9, 17))}, bytes(17)), "leave bytes"),
        "bytes after the end": (with_header({"a": entry()}, bytes(9)), "1 bytes follow"),
        "one byte too few": (with_header({"a": entry()}, bytes(7)), "was cut"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), BAD_FILES.values(), ids=BAD_FILES)
def test_what_is_wrong_is_told_in_one_sentence(write, content, words):
    with pytest.raises(BadFile, match=words) as caught:
        read_layout(write(content))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_cut_anywhere_is_refused(write):
    whole = make_file()
    for length in range(len(whole)):
        with pytest.raises(BadFile):
            read_layout(write(whole[:length]))


def test_too_many_tensors_are_refused(write):
    header = {f"t{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(5000)}
    with pytest.raises(BadFile, match="names 5000 tensors"):
        read_layout(write(with_header(header, b"")))


def test_the_limit_of_the_header_is_the_callers(write):
    with pytest.raises(BadFile, match="at most 10"):
        read_layout(write(make_file()), max_header_bytes=10)


def test_zeros_of_the_toys_have_their_size():
    assert len(zeros("BF16", 3, 5)[2]) == 30
