"""Whatever a client sends to our routes, the answer is one that OpenAPI promises."""

from __future__ import annotations

import http.client
import json

import pytest
from drafter_toys import make_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_server import LocalServer, serve_local

WHOLE = make_file(1.0)


@pytest.fixture(scope="module")
def server():
    with serve_local(drafter_stall_s=2) as server:
        yield server


words = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), max_size=12)
names = ["version", "base_version", "dry_run", "wait", "guard", "guard_verifies", "guard_ratio"]
queries = st.dictionaries(st.sampled_from(names) | words.filter(bool), words | st.integers().map(
    str) | st.sampled_from(["true", "false", "on", "off", "nan", "1e999", "%00", "%ff"]),
    max_size=4)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["path", "group", "to", "tensors", "port"]) | st.text(max_size=5),
        inner, max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip
bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.integers(0, len(WHOLE)).map(lambda length: WHOLE[:length]),
    st.just(WHOLE),
)
headers = st.dictionaries(
    st.sampled_from(["Content-Type", "Content-SHA256", "Content-Encoding", "Authorization",
                     "Origin", "Accept", "Range", "X-Forwarded-For"]),
    st.sampled_from(["application/json", "application/octet-stream", "text/html; charset=x", "",
                     "gzip", "0" * 64, "Bearer x", "http://localhost", "null", "bytes=0-1"])
    | words,
    max_size=3,
)  # fmt: skip
ROUTES = {
    "/update_drafter": {"POST"},
    "/drafter": {"GET"},
    "/drafter/schema": {"GET"},
    "/drafter/rollback": {"POST"},
}


def ask(server: LocalServer, method: str, path: str, body: bytes, head: dict[str, str]):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body=body, headers=head)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "POST", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]),
    route=st.sampled_from(list(ROUTES)),
    query=queries,
    body=bodies,
    head=headers,
)
def test_any_request(server, method, route, query, body, head):
    path = route + ("?" + "&".join(f"{k}={v}" for k, v in query.items()) if query else "")
    path = path.replace("#", "").replace(" ", "")
    status, content = ask(server, method, path, body, head)
    if method not in ROUTES[route]:
        assert status == 405
        return
    promised = server.app.openapi()["paths"][route][method.lower()]["responses"]
    assert str(status) in promised, (status, content)
    answer = json.loads(content)
    if status != 200:
        assert set(answer["error"]) == {"code", "message", "problems"}
        assert answer["error"]["message"].count("\n") == 0


def test_afterwards_it_serves_and_takes_a_push(server):
    assert server.push(make_file(9.0), guard="off").json()["applied"]
    assert server.engine.serving_value() == {9.0}
