"""Settings survive a file, and no input makes anything but a sentence."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sglang_respec import config as settings
from sglang_respec.config import RespecConfig
from sglang_respec.errors import RespecError

configs = st.builds(
    RespecConfig,
    kernels=st.sampled_from(["auto", "triton", "reference"]),
    portable_threads=st.integers(0, 2**31),
    portable_kv_tokens=st.integers(1, 2**40),
)
plain_values = st.one_of(st.integers(), st.booleans(), st.text(max_size=8), st.floats(), st.none())


def attempt(function, argument):
    """The result and an empty text, or None and the refusal."""
    try:
        return function(argument), ""
    except RespecError as error:
        return None, str(error)


@given(configs)
def test_round_trip(config):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "respec.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
        assert RespecConfig.from_toml(path) == config


@given(st.dictionaries(st.text(max_size=20), plain_values, max_size=4))
def test_any_mapping_is_read_or_refused(values):
    config, refusal = attempt(RespecConfig.from_mapping, values)
    assert "\n" not in refusal
    assert refusal or all(getattr(config, name) == value for name, value in values.items())


@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "respec.toml"
        path.write_bytes(content)
        _, refusal = attempt(RespecConfig.from_toml, path)
        assert not refusal or "respec.toml" in refusal


@given(st.sampled_from(settings.knobs()), st.text(max_size=12))
def test_any_flag_text_is_read_or_refused(knob, text):
    value, refusal = attempt(knob.from_text, text)
    assert knob.name in refusal if refusal else isinstance(value, knob.type)
