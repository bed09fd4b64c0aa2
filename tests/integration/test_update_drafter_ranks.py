"""Two tensor-parallel ranks swap together or not at all, and policy pushes leave the drafter be."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import psutil
import pytest
from drafter_files import degraded, trained
from rollouts import generate
from serving import Servers, scheduler_processes, speculation, two_devices

from respec_server.bundled import demo_models
from respec_server.process import ServerProcess, free_port

pytestmark = [pytest.mark.server, two_devices]

RANKS = 2
GREEDY = {"temperature": 0.0, "max_new_tokens": 48, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(servers: Servers) -> ServerProcess:
    flags = [*speculation(3, 1, 4), "--tp-size", "2"]
    return servers.get(*flags, environ={"SGLANG_CPU_OMP_THREADS_BIND": "0|1"})


def post(server: ServerProcess, path: str, **request: object) -> dict:
    answer = httpx.post(server.url + path, timeout=120, trust_env=False, **request)
    return {"status": answer.status_code, **answer.json()}


def push(server: ServerProcess, content: bytes) -> dict:
    return post(server, "/update_drafter?guard=off", content=content)


def checksums(server: ServerProcess, drafter: bool) -> list[dict[str, str]]:
    """Of every parameter of the drafter or of the target, on each rank."""
    answer = post(server, "/weights_checker", json={"action": "checksum"})
    assert answer["success"], answer
    return [
        {k: v for k, v in rank["checksums"].items() if k.startswith("draft.") == drafter}
        for rank in answer["ranks"]
    ]


def test_both_ranks_commit_the_same_version(
    server: ServerProcess, prompts: list[list[int]]
) -> None:
    start, target = checksums(server, drafter=True), checksums(server, drafter=False)
    assert len(start) == RANKS
    good = generate(server.url, prompts[:8], GREEDY, concurrency=4)

    assert push(server, degraded())["applied"]
    worse = checksums(server, drafter=True)
    for rank in range(RANKS):
        changed = {name for name in start[rank] if start[rank][name] != worse[rank][name]}
        assert {name.rpartition("draft.")[2] for name in changed} == {"lm_head.weight"}
    bad = generate(server.url, prompts[:8], GREEDY, concurrency=4)
    assert bad.token_lists == good.token_lists
    assert bad.accepted_length < good.accepted_length - 1

    assert push(server, trained())["applied"]
    assert checksums(server, drafter=True) == start
    assert checksums(server, drafter=False) == target


def test_when_one_rank_cannot_stage_neither_commits(
    server: ServerProcess, prompts: list[list[int]]
) -> None:
    before = checksums(server, drafter=True)
    version = httpx.get(f"{server.url}/drafter", trust_env=False).json()["serving"]
    rank = scheduler_processes(server)[1]
    limits = rank.rlimit(psutil.RLIMIT_NOFILE)
    rank.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))  # it can open no file now
    try:
        answer = push(server, degraded())
    finally:
        rank.rlimit(psutil.RLIMIT_NOFILE, limits)
    assert answer["status"] == 503, answer
    assert "Too many open files" in answer["error"]["message"]
    assert checksums(server, drafter=True) == before
    batch = generate(server.url, prompts[:8], GREEDY, concurrency=4)
    assert batch.accepted_length > 1.5
    assert push(server, degraded())["version"] == version + 1
    assert push(server, trained())["version"] == version + 2
    assert checksums(server, drafter=True) == before


def test_policy_pushes_from_disk_leave_the_drafter_be(server: ServerProcess) -> None:
    drafter, target = checksums(server, drafter=True), checksums(server, drafter=False)
    path = str(demo_models()[0])
    answer = post(server, "/update_weights_from_disk", json={"model_path": path})
    assert answer["success"], answer
    assert checksums(server, drafter=True) == drafter
    assert checksums(server, drafter=False) == target


EXPECTED = {
    "tensor": {
        "begin": True, "garbage": False, "one payload for two ranks": False, "wrong shape": False,
        "no tensors": False, "good": True, "end": True,
    },
    "group": {
        "init": True, "begin": True, "wrong shape": False, "good": True, "to all": True,
        "end": True, "leave": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("way", EXPECTED)
def test_policy_pushes_leave_the_drafter_be(
    server: ServerProcess, servers: Servers, prompts: list[list[int]], way: str
) -> None:
    """With bad payloads before the good one: each is answered, and the server lives."""
    drafter, target = checksums(server, drafter=True), checksums(server, drafter=False)
    program = Path(__file__).with_name("policy_push.py")
    command = servers.python(str(program), way, server.url, str(RANKS), str(free_port()))
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    answers = json.loads(done.stdout.splitlines()[-1])
    success = {name: each["success"] for name, each in answers.items()}
    assert success == EXPECTED[way], answers
    assert answers["wrong shape"]["message"]
    assert checksums(server, drafter=True) == drafter
    pushed = checksums(server, drafter=False)
    for rank in range(RANKS):
        changed = {name for name in target[rank] if target[rank][name] != pushed[rank][name]}
        assert changed == {"model.norm.weight"}

    path = str(demo_models()[0])
    assert post(server, "/update_weights_from_disk", json={"model_path": path})["success"]
    assert checksums(server, drafter=False) == target
    assert generate(server.url, prompts[:8], GREEDY, concurrency=4).accepted_length > 1.5


def test_a_policy_session_left_open_does_not_keep_drafters_out(server: ServerProcess) -> None:
    """A trainer died between begin and end: SGLang keeps its session and says how to go on."""
    drafter = checksums(server, drafter=True)
    assert post(server, "/begin_weight_update", json={})["success"]
    try:
        assert push(server, degraded())["applied"]
        assert push(server, trained())["applied"]
        again = post(server, "/begin_weight_update", json={})
        assert (again["status"], again["success"]) == (400, False)
        assert "end_weight_update" in again["message"]
    finally:
        assert post(server, "/end_weight_update", json={})["success"]
    assert post(server, "/begin_weight_update", json={})["success"]
    assert post(server, "/end_weight_update", json={})["success"]
    assert checksums(server, drafter=True) == drafter


@pytest.mark.parametrize(
    ("path", "body"),
    {
        "no folder": ("/update_weights_from_disk", {"model_path": "/nowhere/at/all"}),
        "no weights": ("/update_weights_from_disk", {"model_path": "/usr"}),
        "no group": (
            "/update_weights_from_distributed",
            {"names": ["model.norm.weight"], "dtypes": ["float32"], "shapes": [[192]],
             "group_name": "never made"},
        ),
        "no session": ("/update_weights_from_tensor", {"serialized_named_tensors": ["AAAA"]}),
        "no socket": ("/update_weights_from_ipc", {"zmq_handles": {"GPU-0": "ipc:///nowhere"}}),
    }.values(),
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_policy_pushes_that_fail_are_answered(
    server: ServerProcess, prompts: list[list[int]], path: str, body: dict
) -> None:
    answer = post(server, path, json=body)
    assert (answer["status"], answer["success"]) == (400, False)
    assert answer["message"]
    assert generate(server.url, prompts[:2], GREEDY, concurrency=2).accepted_length > 1.5
