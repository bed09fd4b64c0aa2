"""`respec demo` against a stand-in server that streams chat answers as SGLang does."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from respec_server import demo
from sglang_respec.demo_task import parse_problem, worked_answer
from sglang_respec.errors import RespecError

TOKENS, VERIFIES, ACCEPTED = 10, 4, 6
PLAIN_ANSWERS = {
    "/v1/models": {"data": [{"id": "target"}]},
    "/server_info": {"internal_states": []},
    "/v1/loads": {"loads": [{"total_prefill_busy_us": 0}]},
}


class Handler(BaseHTTPRequestHandler):
    fail = False

    def do_GET(self):
        self.reply(json.dumps(PLAIN_ANSWERS[self.path]), "application/json")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.fail:
            self.send_error(500)
            return
        problem = parse_problem(request["messages"][0]["content"])
        details = {"spec_verify_ct": VERIFIES, "spec_num_correct_drafts": ACCEPTED}
        frame = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "target"}
        delta = {"index": 0, "delta": {"content": worked_answer(problem)}}
        chunks = [
            {**frame, "choices": [delta]},
            {**frame, "choices": [], "sglext": {"spec_tokens_details": details}},
            {**frame, "choices": [], "usage": {
                "prompt_tokens": 1, "completion_tokens": TOKENS, "total_tokens": 11}},
        ]  # fmt: skip
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
        self.reply("".join(lines), "text/event-stream")

    def reply(self, text, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        del args


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces the server process; says afterwards whether it was stopped."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()

    class StandIn:
        stopped = False

        def __init__(self, arguments, log=None):
            del arguments
            self.log = log
            self.url = f"http://127.0.0.1:{http.server_port}"

        def start(self):
            return self

        def wait_until_ready(self, on_wait):
            on_wait(0.0)
            return self

        def stop(self):
            StandIn.stopped = True

    monkeypatch.setattr(demo, "ServerProcess", StandIn)
    yield StandIn
    http.shutdown()
    http.server_close()


def test_the_table_says_what_was_measured(stand_in, capsys):
    assert demo.run_demo(requests=6, concurrency=3) == 0
    text = capsys.readouterr().out
    assert "EAGLE-3 speculation" in text
    assert "6 (100%)" in text
    assert str(6 * TOKENS) in text
    assert f"{1 + ACCEPTED / VERIFIES:.2f}" in text
    assert stand_in.stopped


def test_a_lost_request_is_one_sentence_and_the_server_is_stopped(stand_in, monkeypatch):
    monkeypatch.setattr(Handler, "fail", True)
    with pytest.raises(RespecError, match="--log"):
        demo.run_demo(requests=2, concurrency=2)
    assert stand_in.stopped


@pytest.mark.parametrize(("requests", "concurrency"), [(0, 1), (1, 0), (-1, 4)])
def test_an_empty_batch_is_refused(requests, concurrency):
    with pytest.raises(RespecError, match="1 or more"):
        demo.run_demo(requests=requests, concurrency=concurrency)


def test_accepted_length_counts_the_bonus_token():
    answer = demo.Answer(True, 10, 0.1, 1.0, verifies=4, accepted_drafts=8)
    plain = demo.Answer(True, 10, 0.1, 1.0, verifies=0, accepted_drafts=0)
    assert demo.Batch([answer, answer], 1.0, 0.0).accepted_length == 3.0
    assert demo.Batch([plain], 1.0, 0.0).accepted_length is None
