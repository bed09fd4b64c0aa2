"""Options under which the extension would silently not run are refused by name."""

from __future__ import annotations

import pytest

from sglang_respec.errors import RespecError
from sglang_respec.refusals import SGLANG_VERSION, options_of, refuse_unsupported

SPECULATION = {"speculative_algorithm": "EAGLE3"}


def right_version() -> str:
    return SGLANG_VERSION


def check(options=None, environ=None, version=right_version):
    refuse_unsupported(options or {}, environ or {}, sglang_version=version)


def test_the_defaults_are_accepted():
    check()
    check({"disaggregation_mode": "null", "rl_on_policy_target": "fsdp"})
    check({**SPECULATION, "speculative_accept_threshold_acc": 1.0})
    check({"tokenizer_worker_num": 1, "smg_grpc_mode": False, "grpc_port": None, "device": "cpu"})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tokenizer_worker_num": 2}, "--tokenizer-worker-num must stay 1"),
        ({"smg_grpc_mode": True}, "--smg-grpc-mode"),
        ({"grpc_mode": True}, "--grpc-mode"),
        ({"use_ray": True}, "--use-ray"),
        ({"encoder_only": True}, "--encoder-only"),
        ({"enable_multi_layer_eagle": True}, "--enable-multi-layer-eagle"),
        ({"disaggregation_mode": "decode"}, "--disaggregation-mode"),
        ({**SPECULATION, "speculative_use_rejection_sampling": True}, "coupled sampling"),
        ({**SPECULATION, "speculative_accept_threshold_acc": 0.9}, "never does"),
        ({**SPECULATION, "speculative_accept_threshold_single": 0.5}, "never does"),
        ({**SPECULATION, "rl_on_policy_target": "fsdp"}, "--rl-on-policy-target"),
    ],
)
def test_refused_options(options, match):
    with pytest.raises(RespecError, match=match):
        check(options)


@pytest.mark.parametrize("value", ["1", "true", "Yes", "y"])
def test_rust_server(value):
    with pytest.raises(RespecError, match="unset SGLANG_RUST_SERVER"):
        check(environ={"SGLANG_RUST_SERVER": value})


@pytest.mark.parametrize("value", ["0", "false", ""])
def test_rust_server_off(value):
    check(environ={"SGLANG_RUST_SERVER": value})


def test_plugin_list_without_us():
    with pytest.raises(RespecError, match="add respec and respec_portable"):
        check(environ={"SGLANG_PLUGINS": "other, third"})
    check(environ={"SGLANG_PLUGINS": "other, respec"})
    check({"device": "cpu"}, {"SGLANG_PLUGINS": "respec,respec_portable"})
    with pytest.raises(RespecError, match="add respec_portable"):
        check({"device": "cpu"}, {"SGLANG_PLUGINS": "respec"})


def test_platform_of_somebody_else():
    with pytest.raises(RespecError, match="unset SGLANG_PLATFORM"):
        check(environ={"SGLANG_PLATFORM": "other"})
    check(environ={"SGLANG_PLATFORM": "respec_portable"})


@pytest.mark.parametrize("version", ["0.5.20", "0.5.24", "0.5.23.post1"])
def test_another_sglang(version):
    with pytest.raises(RespecError, match=f"sglang=={SGLANG_VERSION}"):
        check(version=lambda: version)


def test_no_sglang():
    with pytest.raises(RespecError, match="not installed"):
        check(version=lambda: None)


def test_the_installed_sglang_is_the_pinned_one():
    refuse_unsupported({}, {})


def test_options_of_a_struct():
    class Struct:
        __struct_fields__ = ("model_path", "use_ray")
        model_path = "m"
        use_ray = True

    assert options_of(Struct()) == {"model_path": "m", "use_ray": True}
