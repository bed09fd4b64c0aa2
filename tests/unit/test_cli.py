"""The `respec` command from outside: help, versions, refusals, all in well under a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from sglang_respec.refusals import SGLANG_VERSION


def respec(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "respec_server", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_the_commands(arguments):
    answer = respec(*arguments)
    assert answer.returncode == 0
    for command in ("serve", "demo", "status", "doctor", "version"):
        assert f"\n  {command}" in answer.stdout
    assert "examples:" in answer.stdout


@pytest.mark.parametrize("command", ["serve", "demo", "status", "doctor", "version"])
def test_every_command_has_help(command):
    answer = respec(command, "--help")
    assert answer.returncode == 0
    assert f"usage: respec {command}" in answer.stdout


def test_serve_help_explains_every_setting():
    text = respec("serve", "--help").stdout
    for flag in ("--drafter-path", "--demo", "--respec-kernels", "--respec-portable-kv-tokens"):
        assert flag in text
    assert "default: 65536" in text


def test_help_is_quick():
    code = (
        "import sys; from respec_server.cli import main; main(['--help']);"
        "heavy = {'torch', 'sglang', 'rich', 'httpx', 'openai'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_version():
    answer = respec("--version")
    assert f"sglang {SGLANG_VERSION}" in answer.stdout
    assert "sglang-respec " in answer.stdout


def test_an_unknown_command_names_the_close_one():
    answer = respec("sreve")
    assert answer.returncode == 2
    assert "did you mean 'serve'" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (["--respec-kernal", "triton"], {}, "did you mean 'kernels'"),
        (["--respec-kernels", "cuda"], {}, "auto, triton, reference"),
        (["--respec-portable-threads=x"], {}, "an integer"),
        (["--respec-config", "/nowhere/respec.toml"], {}, "cannot be read"),
        (["--tokenizer-worker-num", "2"], {}, "--tokenizer-worker-num must stay 1"),
        (["--tokenizer-worker-num=2"], {}, "--tokenizer-worker-num must stay 1"),
        (["--smg-grpc-mode"], {}, "gRPC"),
        ([], {"SGLANG_RUST_SERVER": "1"}, "unset SGLANG_RUST_SERVER"),
        ([], {"SGLANG_PLUGINS": "other"}, "leaves this extension out"),
        (["--drafter-path", "/nowhere/at/all"], {}, "not a directory"),
    ],
)
def test_serve_refuses_at_once(arguments, environ, says):
    started = time.monotonic()
    answer = respec("serve", "--model-path", "owner/model", *arguments, **environ)
    assert answer.returncode == 2
    assert says in answer.stderr
    assert answer.stderr.count("\n") == 1  # one sentence, no traceback
    assert time.monotonic() - started < 10  # SGLang alone takes longer to import


def test_serve_without_a_model():
    answer = respec("serve")
    assert answer.returncode == 2
    assert "--model-path" in answer.stderr


def test_serve_refuses_a_drafter_that_does_not_fit(make_target, make_drafter):
    drafter = make_drafter(architectures=["LlamaForCausalLM"])
    answer = respec(
        "serve", "--model-path", str(make_target()), "--drafter-path", str(drafter)
    )  # fmt: skip
    assert answer.returncode == 2
    assert "not an EAGLE-3 drafter" in answer.stderr


def test_status_of_nobody():
    answer = respec("status", "--url", "http://127.0.0.1:9")
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "No server answers" in answer.stderr


def test_quick_doctor_passes_here():
    answer = respec("doctor", "--quick")
    assert answer.returncode == 0, answer.stdout
    assert "FAIL" not in answer.stdout
    assert "plugin respec" in answer.stdout


def test_doctor_says_what_is_wrong_and_how_to_mend_it():
    answer = respec("doctor", "--quick", SGLANG_RESPEC="0", SGLANG_RESPEC_CONFIG="/nowhere.toml")
    assert answer.returncode == 1
    assert "FAIL" in answer.stdout
    assert "unset it" in answer.stdout
    assert "/nowhere.toml" in answer.stdout


def test_demo_refuses_an_empty_batch():
    answer = respec("demo", "--requests", "0")
    assert answer.returncode == 2
    assert "1 or more" in answer.stderr


def test_status_as_json_is_not_printed_when_the_server_is_down():
    answer = respec("status", "--url", "http://127.0.0.1:9", "--json")
    assert answer.stdout == ""
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.stdout)
