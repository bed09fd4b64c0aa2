"""`respec status` against a stand-in that answers as SGLang does."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from respec_server.status import ServerUnreachable, fetch_status, show_status

ANSWERS = {
    "/v1/models": {"data": [{"id": "target"}]},
    "/server_info": {
        "version": "0.5.23",
        "speculative_algorithm": "EAGLE3",
        "speculative_draft_model_path": "drafter",
        "speculative_num_steps": 5,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": 6,
        "internal_states": [{"last_gen_throughput": 120.5, "avg_spec_accept_length": 3.25}],
    },
    "/v1/loads": {
        "loads": [
            {"num_running_reqs": 3, "num_waiting_reqs": 1, "num_used_tokens": 40,
             "max_total_num_tokens": 400, "total_prefill_busy_us": 2_500_000},
        ]
    },
}  # fmt: skip


@pytest.fixture
def serve():
    servers = []

    def start(answers, code=200):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = answers.get(self.path)
                self.send_response(code if body is not None else 404)
                self.end_headers()
                text = body if isinstance(body, str) else json.dumps(body)
                self.wfile.write(text.encode())

            def log_message(self, *args):
                del args

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_everything_a_server_says(serve):
    status = fetch_status(serve(ANSWERS) + "/")
    assert status.models == ("target",)
    assert status.drafter == "drafter"
    assert status.speculation == "5,1,6"
    assert (status.running_requests, status.waiting_requests) == (3, 1)
    assert status.tokens_per_s == 120.5
    assert status.accepted_length == 3.25
    assert (status.kv_used_tokens, status.kv_total_tokens) == (40, 400)
    assert status.prefill_busy_s == 2.5


def test_ranks_are_summed(serve):
    two = {
        **ANSWERS,
        "/v1/loads": {"loads": ANSWERS["/v1/loads"]["loads"] * 2},
        "/server_info": {
            **ANSWERS["/server_info"],
            "internal_states": [
                {"last_gen_throughput": 100.0, "avg_spec_accept_length": 2.0},
                {"last_gen_throughput": 50.0, "avg_spec_accept_length": 4.0},
            ],
        },
    }
    status = fetch_status(serve(two))
    assert status.running_requests == 6
    assert status.tokens_per_s == 150.0
    assert status.accepted_length == 3.0


def test_a_plain_server(serve):
    info = {"version": "0.5.23", "internal_states": [{"last_gen_throughput": 0}]}
    status = fetch_status(serve({**ANSWERS, "/server_info": info}))
    assert status.drafter is None
    assert status.speculation is None
    assert status.accepted_length is None


def test_table_and_json(serve, capsys):
    url = serve(ANSWERS)
    assert show_status(url) == 0
    text = capsys.readouterr().out
    assert "3.25 tokens per verify" in text
    assert "40 of 400 tokens (10%)" in text
    assert show_status(url, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["accepted_length"] == 3.25


@pytest.mark.parametrize(
    ("answers", "code", "says"),
    [
        ({}, 200, "answers 404 to /v1/models"),
        (ANSWERS, 401, "give --api-key"),
        ({**ANSWERS, "/v1/models": "<html>"}, 200, "not an SGLang server"),
        ({**ANSWERS, "/v1/models": [1]}, 200, "not an SGLang server"),
    ],
)
def test_somebody_else_answers(serve, answers, code, says):
    with pytest.raises(ServerUnreachable, match=says):
        fetch_status(serve(answers, code))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:9", "nonsense", ""])
def test_nobody_answers(url):
    with pytest.raises(ServerUnreachable):
        fetch_status(url)
