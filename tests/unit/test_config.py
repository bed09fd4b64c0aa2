"""Settings: one table for files, flags and help; a wrong name or value says what is right."""

from __future__ import annotations

import pytest

from sglang_respec import config as settings
from sglang_respec.config import RespecConfig
from sglang_respec.errors import RespecError


def test_defaults_are_the_documented_ones():
    assert RespecConfig() == RespecConfig(
        kernels="auto", portable_threads=0, portable_kv_tokens=65536
    )


def test_every_knob_has_a_meaning_and_a_flag():
    for knob in settings.knobs():
        assert knob.meaning
        assert knob.flag.startswith("--respec-")
        assert "_" not in knob.flag


def test_round_trip_through_a_file(tmp_path):
    path = tmp_path / "respec.toml"
    config = RespecConfig(kernels="reference", portable_threads=3, portable_kv_tokens=512)
    path.write_text(config.to_toml())
    assert RespecConfig.from_toml(path) == config


def test_the_file_explains_itself():
    text = RespecConfig().to_toml()
    for knob in settings.knobs():
        assert knob.meaning in text


@pytest.mark.parametrize(
    ("name", "close"),
    [("kernel", "'kernels'"), ("portable_thread", "'portable_threads'"), ("zzz", "known: ")],
)
def test_unknown_name(name, close):
    with pytest.raises(RespecError, match=close):
        RespecConfig.from_mapping({name: 1})


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"kernels": "cuda"}, "auto, triton, reference"),
        ({"kernels": 1}, "must be a text"),
        ({"portable_threads": -1}, "0 or more"),
        ({"portable_threads": True}, "an integer"),
        ({"portable_threads": "4"}, "an integer"),
        ({"portable_kv_tokens": 0}, "1 or more"),
        ({"portable_kv_tokens": 1.5}, "an integer"),
        ({"drafter_guard_ratio": "much"}, "a number"),
        ({"drafter_guard_ratio": True}, "a number"),
        ({"drafter_guard_ratio": float("nan")}, "0 or more"),
    ],
)
def test_wrong_values(values, match):
    with pytest.raises(RespecError, match=match):
        RespecConfig.from_mapping(values)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("kernels = ", "not valid TOML"),
        ("kernals = 'auto'", "did you mean 'kernels'"),
        ("portable_threads = 'two'", "In the settings file"),
    ],
)
def test_bad_file(tmp_path, text, match):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(RespecError, match=match):
        RespecConfig.from_toml(path)


def test_missing_file_names_the_variable(tmp_path):
    with pytest.raises(RespecError, match="SGLANG_RESPEC_CONFIG"):
        settings.load_config({"SGLANG_RESPEC_CONFIG": str(tmp_path / "absent.toml")})


def test_load_config(tmp_path):
    path = tmp_path / "respec.toml"
    path.write_text("portable_threads = 2\n")
    assert settings.load_config({"SGLANG_RESPEC_CONFIG": str(path)}).portable_threads == 2
    assert settings.load_config({}) == RespecConfig()
    assert settings.load_config({"SGLANG_RESPEC_CONFIG": ""}) == RespecConfig()


@pytest.mark.parametrize("text", ["0", "false", "no", "off", " 0 ", "OFF"])
def test_switched_off(text):
    assert not settings.enabled({"SGLANG_RESPEC": text})


@pytest.mark.parametrize("environ", [{}, {"SGLANG_RESPEC": "1"}, {"SGLANG_RESPEC": ""}])
def test_on_by_default(environ):
    assert settings.enabled(environ)


def test_a_switch_that_is_neither():
    with pytest.raises(RespecError, match="0 or 1"):
        settings.enabled({"SGLANG_RESPEC": "maybe"})


def test_values_from_text():
    assert settings.find_knob("portable-threads").from_text("7") == 7
    assert settings.find_knob("kernels").from_text("triton") == "triton"
    with pytest.raises(RespecError, match="an integer, got 'many'"):
        settings.find_knob("portable_threads").from_text("many")


def test_a_whole_number_is_a_number():
    assert RespecConfig().replace(drafter_guard_ratio=1).drafter_guard_ratio == 1


def test_replace_checks_too():
    assert RespecConfig().replace(kernels="triton").kernels == "triton"
    with pytest.raises(RespecError, match="did you mean"):
        RespecConfig().replace(kernal="triton")
