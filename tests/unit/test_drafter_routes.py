"""Pushes over real HTTP: what fits is applied, what does not is refused and changes nothing."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import struct

import httpx
import pytest
from drafter_toys import DRAFT_VOCAB, HIDDEN, VOCAB, make_file, zeros
from local_server import refused, serve_local, unharmed


@pytest.fixture(scope="module")
def shared():
    with serve_local(drafter_stall_s=1) as server:
        yield server


@pytest.fixture
def server(shared):
    shared.engine.reset(1)
    return shared


def test_a_good_push(server):
    content = make_file(1.0)
    answer = server.push(content, version="step 12").json()
    assert answer["applied"]
    assert (answer["version"], answer["previous"], answer["label"]) == (1, 0, "step 12")
    assert answer["sha256"] == hashlib.sha256(content).hexdigest()
    assert answer["bytes"] == len(content)
    assert set(answer["phases"]) == {"receive_ms", "check_ms", "stage_ms", "commit_ms"}
    assert server.engine.serving_value() == {1.0}
    state = server.get("/drafter").json()
    assert [each["label"] for each in state["versions"]] == ["start", "step 12"]
    assert state["max_push_bytes"] > len(content)


def test_curls_own_content_type_is_a_file(server):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert server.push(make_file(1.0), headers).json()["applied"]


def test_a_file_in_pieces_without_a_length(server):
    def pieces():
        content = make_file(1.0)
        for start in range(0, len(content), 100):
            yield content[start : start + 100]

    assert server.push(pieces()).json()["applied"]


def test_the_same_file_again_is_no_swap_and_says_so(server):
    assert server.push(make_file(1.0)).json()["applied"]
    again = server.push(make_file(1.0), base_version=0)  # as a client repeats a lost answer
    assert again.status_code == 200
    assert (again.json()["applied"], again.json()["status"]) == (False, "already_serving")
    unharmed(server, 1, 1.0)


def test_a_dry_run_checks_all_and_changes_nothing(server):
    answer = server.push(make_file(1.0), dry_run="true").json()
    assert (answer["applied"], answer["status"], answer["version"]) == (False, "valid", 0)
    refused(server.push(make_file(math.nan), dry_run="true"), 422, "wrong_tensors")
    unharmed(server)


def test_tensors_of_the_target_are_told_of(server):
    content = make_file(1.0, **{"model.embed_tokens.weight": zeros("F32", VOCAB, HIDDEN)})
    assert server.push(content).json()["ignored"] == ["model.embed_tokens.weight"]


def test_the_schema_is_there_to_check_against(server):
    slots = {each["name"]: each for each in server.get("/drafter/schema").json()["slots"]}
    assert slots["lm_head.weight"]["shape"] == [DRAFT_VOCAB, HIDDEN]
    assert slots["embed_tokens.weight"]["role"] == "shared"


def d2t(*offsets: int) -> tuple[str, tuple[int, ...], bytes]:
    return "I64", (len(offsets),), struct.pack(f"<{len(offsets)}q", *offsets)


def floats(*values: float) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", (len(values),), struct.pack(f"<{len(values)}f", *values)


WRONG = {
    "shape": ({"norm.weight": zeros("F32", HIDDEN + 1)}, "norm.weight"),
    "rank": ({"norm.weight": zeros("F32", HIDDEN, 1)}, "norm.weight"),
    "transposed": ({"lm_head.weight": zeros("F32", HIDDEN, DRAFT_VOCAB)}, "lm_head.weight"),
    "type": ({"norm.weight": zeros("I64", HIDDEN)}, "norm.weight"),
    "double": ({"norm.weight": zeros("F64", HIDDEN)}, "norm.weight"),
    "missing": ({"norm.weight": None}, "norm.weight"),
    "extra": ({"more.weight": zeros("F32", 1)}, "more.weight"),
    "not a number": ({"norm.weight": floats(0, 0, math.nan, 0)}, "norm.weight"),
    "infinite": ({"norm.weight": floats(0, 0, math.inf, 0)}, "norm.weight"),
    "d2t missing": ({"d2t": None}, "d2t"),
    "d2t outside": ({"d2t": d2t(*[VOCAB] * DRAFT_VOCAB)}, "d2t"),
    "d2t negative": ({"d2t": d2t(*[-1] * DRAFT_VOCAB)}, "d2t"),
    "d2t of floats": ({"d2t": zeros("F32", DRAFT_VOCAB)}, "d2t"),
    "d2t of another size": ({"d2t": zeros("I64", DRAFT_VOCAB + 1)}, "d2t"),
    "t2d that disagrees": ({"t2d": zeros("BOOL", VOCAB)}, "t2d"),
    "one tensor twice": ({"model.norm.weight": zeros("F32", HIDDEN)}, "model.norm.weight"),
    "another target": ({"embed_tokens.weight": zeros("F32", VOCAB, 1)}, "embed_tokens.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_tensors_that_do_not_fit(server, name):
    changes, tensor = WRONG[name]
    error = refused(server.push(make_file(1.0, **changes)), 422, "wrong_tensors")
    assert [each["tensor"] for each in error["problems"]] == [tensor]
    assert tensor in error["message"]
    unharmed(server)


def test_a_changed_map_is_taken_with_the_weights(server):
    new = [VOCAB - DRAFT_VOCAB] * DRAFT_VOCAB
    address = server.engine.swaps[0].live.token_map.data_ptr()
    assert server.push(make_file(1.0, d2t=d2t(*new))).json()["applied"]
    token_map = server.engine.swaps[0].live.token_map
    assert token_map.tolist() == [i + VOCAB - DRAFT_VOCAB for i in range(DRAFT_VOCAB)]
    assert token_map.data_ptr() == address
    server.rollback(to=0)
    assert server.engine.swaps[0].live.token_map.tolist() == list(range(DRAFT_VOCAB))


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_cut_file(server, part):
    content = make_file(1.0)
    refused(server.push(content[: int(part * len(content))]), 400, "bad_file")
    unharmed(server)


def test_bytes_after_the_file(server):
    refused(server.push(make_file(1.0) + b"\0"), 400, "bad_file")
    unharmed(server)


def test_a_wrong_hash(server):
    content = make_file(1.0)
    right = hashlib.sha256(content).hexdigest()
    refused(server.push(content, {"Content-SHA256": right[::-1]}), 400, "wrong_hash")
    refused(server.push(content, {"Content-SHA256": "no hash"}), 400, "bad_request")
    assert server.push(content, {"Content-SHA256": right.upper()}).json()["applied"]


@pytest.mark.parametrize(
    "params",
    [
        {"base_version": "x"}, {"base_version": -1}, {"base_version": 2**70}, {"dry_run": "maybe"},
        {"guard": "perhaps"}, {"guard_ratio": 2}, {"guard_ratio": "nan"}, {"guard_verifies": 0},
        {"version": "x" * 300}, {"version": "a\nb"}, {"unknown": 1},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_parameters(server, params):
    refused(server.push(make_file(1.0), **params), 400, "bad_request")
    unharmed(server)


def test_a_push_on_another_base(server):
    server.push(make_file(1.0))
    error = refused(server.push(make_file(2.0), base_version=0), 409, "conflict")
    assert "Version 1 serves" in error["message"]
    assert server.push(make_file(2.0), base_version=1).json()["applied"]


def test_a_compressed_body(server):
    refused(server.push(b"x", {"Content-Encoding": "zstd"}), 415, "compressed")


def test_the_administrators_key():
    with serve_local(admin_key="k") as server:
        refused(server.push(make_file(1.0)), 401, "no_key")
        refused(server.push(make_file(1.0), {"Authorization": "Bearer x"}), 401, "wrong_key")
        refused(server.push(b"", unknown=1), 401, "no_key")
        refused(server.rollback(to=0), 401, "no_key")
        assert server.get("/drafter").json()["serving"] == 0
        assert server.push(make_file(1.0), {"Authorization": "Bearer k"}).json()["applied"]


def test_a_foreign_page(server):
    refused(server.push(make_file(1.0), {"Origin": "https://evil.example"}), 403, "not_local")
    unharmed(server)


def test_rollback(server):
    for value in (1.0, 2.0):
        server.push(make_file(value), version=str(value))
    answer = server.rollback().json()
    assert (answer["version"], answer["restores"], answer["previous"]) == (3, 1, 2)
    assert server.engine.serving_value() == {1.0}
    assert server.rollback(to=0).json()["version"] == 4
    assert server.engine.serving_value() == {0.0}
    error = refused(server.rollback(to=77), 404, "not_kept")
    assert "kept" in error["message"]
    refused(server.rollback(to=-1), 400, "bad_request")
    refused(server.rollback(to="x"), 400, "bad_request")
    refused(server.rollback(too=2), 400, "bad_request")  # and not a rollback to another one
    assert server.engine.serving_value() == {0.0}


@pytest.mark.parametrize("body", [b"\xff", b"{", b"[]", b'{"to": "\xff"}'])
def test_a_rollback_to_what_is_no_json(server, body):
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(
        f"{server.url}/drafter/rollback", content=body, headers=headers, trust_env=False
    )
    refused(answer, 400, "bad_request")


def test_nothing_to_roll_back_to(server):
    refused(server.rollback(), 404, "not_kept")


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "3", "null", "{}", '{"path": 3}', '{"path": "a", "x": 1}', '{"group": {}}'],
)
def test_json_that_says_nothing_clear(server, body):
    answer = server.push(body.encode(), {"Content-Type": "application/json"})
    refused(answer, 400, "bad_request")
    unharmed(server)


def test_group_pushes_are_checked_before_anything_is_received(server):
    group = {
        "address": "127.0.0.1", "port": 1, "world_size": 2,
        "tensors": [{"name": "norm.weight", "dtype": "F32", "shape": [3]}],
    }  # fmt: skip
    answer = server.push(
        json.dumps({"group": group}).encode(), {"Content-Type": "application/json"}
    )
    error = refused(answer, 422, "wrong_tensors")
    assert {"norm.weight", "d2t", "lm_head.weight"} <= {e["tensor"] for e in error["problems"]}


def test_metrics():
    with serve_local() as server:
        count_all(server)


def count_all(server):
    server.push(make_file(1.0))
    server.push(make_file(1.0))
    server.push(b"")
    assert server.metric("drafter_pushes_total", result="applied") == 1
    assert server.metric("drafter_pushes_total", result="already_serving") == 1
    assert server.metric("drafter_pushes_total", result="bad_file") == 1
    assert server.metric("drafter_version") == 1
    assert server.metric("drafter_push_seconds_count", phase="commit") == 1


def test_what_a_killed_server_left_is_cleared(tmp_path):
    old = tmp_path / f"respec-drafter-{platform.node()}-999999999-x"
    other = tmp_path / "respec-drafter-elsewhere-999999999-x"
    for each in (old, other):
        each.mkdir()
        (each / "p.safetensors").write_bytes(b"x")
    with serve_local(drafter_spool_dir=str(tmp_path)):
        assert not old.exists()
        assert other.exists()


def test_openapi_tells_every_answer(server):
    paths = server.app.openapi()["paths"]
    push = paths["/update_drafter"]["post"]
    assert {"200", "400", "401", "403", "408", "409", "413", "422", "503", "507"} <= set(
        push["responses"]
    )
    assert set(push["requestBody"]["content"]) == {"application/octet-stream", "application/json"}
    assert {"version", "base_version", "dry_run", "wait", "guard", "content-sha256"} <= {
        each["name"] for each in push["parameters"]
    }
    assert "$defs" not in json.dumps(push["requestBody"])
