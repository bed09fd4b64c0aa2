"""Requests that schemathesis makes of our OpenAPI: every answer is one that it promises."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from drafter_toys import make_file
from local_server import serve_local, unharmed

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from fuzz_routes import Fuzzed, fuzz, ours

EXAMPLES = 20
KEY = "the administrator's"


def reached(found: Fuzzed) -> set[str]:
    return {answer for answer in found.answers if not answer.endswith(" 405")}


@pytest.mark.parametrize("key", [None, KEY], ids=["no key", "key"])
def test_answers_are_as_promised(tmp_path, key):
    (tmp_path / "a.safetensors").write_bytes(make_file(2.0))
    with serve_local(admin_key=key, drafter_dir=str(tmp_path)) as server:
        found = fuzz(server.url, examples=EXAMPLES, file=make_file(1.0), admin_key=key)
        if key is None:
            serving = server.get("/drafter").json()["serving"]
            (value,) = server.engine.serving_value()
            unharmed(server, serving, value)
    assert not found.failures, "\n".join(found.failures)
    assert not found.errors
    assert {"GET /drafter 200", "POST /update_drafter 200", "POST /update_drafter 400"} <= reached(
        found
    )


def test_without_the_key_nothing_is_changed():
    with serve_local(admin_key=KEY) as server:
        found = fuzz(server.url, examples=EXAMPLES, file=make_file(1.0))
        assert server.get("/drafter").json()["serving"] == 0
    assert not found.failures, "\n".join(found.failures)
    assert {each for each in reached(found) if each.endswith(" 200")} == {
        "GET /drafter 200",
        "GET /drafter/schema 200",
    }


def test_a_promise_that_is_not_kept_is_found():
    with serve_local() as server:
        document = server.app.openapi()
        del document["paths"]["/update_drafter"]["post"]["responses"]["400"]
        found = fuzz(server.url, examples=EXAMPLES, file=make_file(1.0), document=document)
    assert any("status_code_conformance" in each for each in found.failures)


def test_only_our_routes_are_asked():
    get = {"responses": {"200": {"description": "fine"}}}
    document = {"paths": {"/a": {"get": {**get, "tags": ["drafter"]}}, "/generate": {"get": get}}}
    assert set(ours(document)["paths"]) == {"/a"}
