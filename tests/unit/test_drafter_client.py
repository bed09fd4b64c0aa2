"""The client: one file, many servers, repeats that are safe, and a report of what became of it."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
import torch
from drafter_toys import SLOTS, make_file, zeros
from local_server import serve_local

import respec_server.client
from respec_server.client import DrafterClient, PushFailed


@pytest.fixture(scope="module")
def pair():
    with serve_local() as one, serve_local() as two:
        yield one, two


@pytest.fixture
def servers(pair):
    for each in pair:
        each.engine.reset(1)
    return pair


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(make_file(3.0))
    return path


def test_every_server_is_pushed_to(servers, file):
    sent: list[tuple[str, int, int]] = []
    client = DrafterClient([each.url for each in servers])
    report = client.push(file, label="x", progress=lambda *each: sent.append(each))
    assert [each["applied"] for each in report.applied.values()] == [True, True]
    assert [each.engine.serving_value() for each in servers] == [{3.0}, {3.0}]
    size = file.stat().st_size
    assert {(each.url, size, size) for each in servers} <= set(sent)
    assert "version 1" in str(report)


@pytest.mark.parametrize("kind", ["folder", "text", "bytes", "state dict", "module"])
def test_weights_in_any_form(servers, file, kind):
    tensors = {
        s.name: torch.full(s.shape, 3.0) if s.role == "weight" else torch.zeros(s.shape).long()
        for s in SLOTS
        if s.role != "shared"
    }

    class Module:
        def state_dict(self):
            return tensors

    forms = {
        "folder": file.parent, "text": str(file), "bytes": file.read_bytes(),
        "state dict": tensors, "module": Module(),
    }  # fmt: skip
    assert DrafterClient(servers[0].url).push(forms[kind]).applied[servers[0].url]["applied"]
    assert servers[0].engine.serving_value() == {3.0}


def test_a_server_that_refuses_is_reported_and_the_other_keeps_the_push(servers, file):
    servers[0].push(make_file(1.0))
    client = DrafterClient([f"{each.url}/" for each in servers])
    with pytest.raises(PushFailed, match="409: Version 1 serves") as failure:
        client.push(file, base_version=0)
    report = failure.value.report
    assert (set(report.applied), set(report.failed)) == ({servers[1].url}, {servers[0].url})
    bases = {servers[0].url: 1, servers[1].url: 1}
    again = client.push(make_file(4.0), base_version=bases)
    assert [each["version"] for each in again.applied.values()] == [2, 2]


def test_a_refusal_names_its_tensors(servers):
    wrong = {"norm.weight": zeros("F32", 9), "lm_head.weight": None, "more": zeros("F32", 1)}
    with pytest.raises(PushFailed, match="does not fit the serving drafter") as refused:
        DrafterClient(servers[0].url).push(make_file(1.0, **wrong))
    failure = refused.value.report.failed[servers[0].url]
    assert (failure.status, failure.code) == (422, "wrong_tensors")
    assert {each["tensor"] for each in failure.problems} == set(wrong)
    by_name = {each["tensor"]: each for each in failure.problems}
    assert (by_name["norm.weight"]["expected"], by_name["norm.weight"]["got"]) == ("[4]", "[9]")
    assert str(failure) == f"422: {failure.message}"


def test_what_a_proxy_says_is_a_failure_too():
    failure = respec_server.client._failure(httpx.Response(502, text="<html>Bad Gateway</html>"))
    assert (failure.status, failure.code, failure.problems) == (502, "", ())
    assert str(failure) == "502: <html>Bad Gateway</html>"
    odd = respec_server.client._failure(httpx.Response(400, json={"error": "a text"}))
    assert odd.status == 400


def test_a_refusal_is_not_repeated(servers):
    before = servers[0].counted("bad_file")
    with pytest.raises(PushFailed, match="400"):
        DrafterClient(servers[0].url).push(b"no file")
    assert servers[0].counted("bad_file") == before + 1


def test_a_server_that_is_not_there(file):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PushFailed, match=str(port)):
        DrafterClient(f"http://127.0.0.1:{port}", retries=0).push(file)
    with pytest.raises(PushFailed):
        DrafterClient("no url", retries=0).push(file)


def test_an_answer_that_is_lost_is_asked_for_again(servers, file, monkeypatch):
    """A relay that passes the first push on and drops its answer."""
    monkeypatch.setattr(respec_server.client, "FIRST_PAUSE_S", 0.01)
    listener = socket.create_server(("127.0.0.1", 0))

    def relay() -> None:
        for attempt in range(2):
            near, _ = listener.accept()
            with near, socket.create_connection(("127.0.0.1", servers[0].port)) as far:
                near.settimeout(0.5)
                try:
                    while data := near.recv(65536):
                        far.sendall(data)
                except TimeoutError:
                    answer = far.recv(65536)
                    if attempt:
                        near.sendall(answer)

    thread = threading.Thread(target=relay)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    answer = DrafterClient(url).push(file, base_version=0).applied[url]
    thread.join()
    listener.close()
    assert (answer["applied"], answer["status"], answer["version"]) == (
        False, "already_serving", 1,
    )  # fmt: skip


def test_the_key_and_the_hash_travel_along(file):
    with serve_local(admin_key="k") as server:
        with pytest.raises(PushFailed, match="401"):
            DrafterClient(server.url).push(file)
        answer = DrafterClient(server.url, "k").push(file).applied[server.url]
        assert answer["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_rollback_and_state(servers, file):
    client = DrafterClient([each.url for each in servers])
    client.push(file)
    client.rollback()
    assert [each["serving"] for each in client.state().applied.values()] == [2, 2]
    assert servers[1].engine.serving_value() == {0.0}
    with pytest.raises(PushFailed, match="404"):
        client.rollback(77)


def test_inside_a_running_loop_and_awaited(servers, file):
    async def run() -> list[int]:
        client = DrafterClient(servers[0].url)
        first = client.push(file)  # as in a notebook
        second = await client.push_async(make_file(5.0))
        return [each.applied[servers[0].url]["version"] for each in (first, second)]

    assert asyncio.run(run()) == [1, 2]


def test_one_file_is_enough(servers, file, tmp_path):
    """Copied into a trainer's environment, with neither torch nor SGLang nor this package."""
    shutil.copy(respec_server.client.__file__, tmp_path / "drafter_client.py")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from drafter_client import DrafterClient\n"
        "DrafterClient(sys.argv[2]).push(sys.argv[3])\n"
        "ours = {'torch', 'sglang', 'sglang_respec', 'respec_server', 'numpy'}\n"
        "loaded = ours & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)\n"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path), servers[0].url, str(file)], check=True
    )
    assert servers[0].engine.serving_value() == {3.0}
