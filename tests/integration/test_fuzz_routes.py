"""What schemathesis makes of our OpenAPI, asked of a real server: it keeps its word."""

import httpx
import pytest
from drafter_files import trained
from fuzz_routes import fuzz
from rollouts import generate
from serving import Servers, speculation

pytestmark = pytest.mark.server

GREEDY = {"temperature": 0.0, "max_new_tokens": 32, "ignore_eos": True}


def test_a_real_server_keeps_its_promises(servers: Servers, prompts: list[list[int]]) -> None:
    server = servers.get(*speculation(5, 1, 6))
    before = generate(server.url, prompts[:8], GREEDY, concurrency=4)
    try:
        found = fuzz(server.url, examples=10, file=trained())
        assert not found.failures, "\n".join(found.failures)
        assert not found.errors
        assert found.requests > 100
        assert any(each.endswith("/drafter 200") for each in found.answers)
    finally:
        options = {"guard": "off", "wait": "true"}
        pushed = httpx.post(
            f"{server.url}/update_drafter", content=trained(), params=options, trust_env=False,
            timeout=60,
        )  # fmt: skip
    assert pushed.status_code == 200, pushed.text
    after = generate(server.url, prompts[:8], GREEDY, concurrency=4)
    assert after.token_lists == before.token_lists
    assert after.accepted_length > 3.0
