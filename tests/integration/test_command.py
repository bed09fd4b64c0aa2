"""`respec serve` and `respec status` for real: the bundled models behind HTTP."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx
import psutil
import pytest

from respec_server.cpu_environ import CPU_ENVIRON
from respec_server.device import cuda_devices
from respec_server.process import ServerProcess
from sglang_respec.demo_task import make_problem

pytestmark = pytest.mark.server

KV_TOKENS = 8192


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the server keeps its log and its temporary files."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder):
    arguments = [
        "--demo",
        "--respec-policy",
        "always",
        "--respec-portable-kv-tokens",
        str(KV_TOKENS),
    ]
    environ = {"TMPDIR": str(folder), "GLIBC_TUNABLES": ""}  # an empty value removes a name
    with ServerProcess(arguments, log=folder / "server.log", environ=environ) as running:
        yield running


def status(server: ServerProcess) -> dict:
    command = [sys.executable, "-m", "respec_server", "status", "--json", "--url", server.url]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def test_a_chat_request_is_answered_with_accepted_drafts(server):
    request = {
        "model": "default",
        "messages": make_problem(1, split="held_out").messages,
        "max_tokens": 64,
        "temperature": 0.0,
        "return_spec_tokens_details": True,
    }
    answer = httpx.post(server.url + "/v1/chat/completions", json=request, timeout=120).json()
    assert answer["usage"]["completion_tokens"] > 0
    details = answer["sglext"]["spec_tokens_details"]
    assert details["spec_verify_ct"] > 0
    assert details["spec_num_correct_drafts"] > 0


def test_status_of_the_running_server(server):
    found = status(server)
    assert found["algorithm"] == "EAGLE3"
    assert found["speculation"] == "5,1,6"
    assert found["drafter"].endswith("drafter")
    assert found["running_requests"] == 0


@pytest.mark.skipif(cuda_devices()[0] > 0, reason="the setting is for machines without a GPU")
def test_a_setting_reaches_the_scheduler(server):
    assert status(server)["kv_total_tokens"] == KV_TOKENS


def test_without_a_gpu_the_server_began_with_what_the_c_library_reads_once(server):
    tunables = psutil.Process(server.pid).environ().get("GLIBC_TUNABLES")
    assert tunables == (None if cuda_devices()[0] else CPU_ENVIRON["GLIBC_TUNABLES"])


def test_nothing_is_left_after_the_server(server, folder):
    """Last: it stops the server that the tests above share."""
    tree = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    assert len(tree) >= 3  # the HTTP server, a scheduler, a detokenizer
    assert list(folder.glob("respec-*/respec.toml"))
    server.stop()
    assert not any(process.is_running() for process in tree)
    assert not list(folder.glob("respec-*"))
