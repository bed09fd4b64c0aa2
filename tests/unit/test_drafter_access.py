"""Who may change the drafter."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from respec_server.access import require_admin
from respec_server.refusal import Refusal

KEY = "s3cret-ü"


def status(client: str | None, key: str | None = None, **headers: str) -> int:
    try:
        require_admin(Headers({"host": "localhost:30000", **headers}), client, key)
    except Refusal as refusal:
        return refusal.status
    return 200


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ("Bearer s3cret-ü", 200), ("bearer s3cret-ü", 200), ("Bearer  s3cret-ü ", 200),
        ("Bearer s3cret", 401), ("Bearer", 401), ("", 401), ("Basic s3cret-ü", 401),
        ("s3cret-ü", 401), ("Bearer S3CRET-ü", 401),
    ],
)  # fmt: skip
def test_with_a_key_only_its_holder(authorization, expected):
    assert status("10.0.0.9", KEY, authorization=authorization) == expected


def test_with_a_key_this_machine_needs_it_too():
    assert status("127.0.0.1", KEY) == 401


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("127.0.0.1", 200), ("127.8.9.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200),
        ("10.0.0.9", 403), ("::ffff:10.0.0.9", 403), ("::", 403), ("", 403), (None, 403),
        ("localhost", 403),
    ],
)  # fmt: skip
def test_without_a_key_only_this_machine(client, expected):
    assert status(client) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"host": "127.0.0.1:1"}, 200), ({"host": "[::1]:1"}, 200), ({"host": "localhost"}, 200),
        ({"origin": "http://localhost:30000"}, 200), ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403), ({"host": "evil.example"}, 403), ({"host": ""}, 403),
        ({"host": "localhost.evil.example"}, 403), ({"host": "[bad"}, 403),
    ],
)  # fmt: skip
def test_without_a_key_no_foreign_page(headers, expected):
    assert status("127.0.0.1", **headers) == expected
