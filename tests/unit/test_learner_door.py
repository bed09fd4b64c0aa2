"""The learner's HTTP door over real HTTP: what it takes, refuses and shows."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from learner_toys import markov_rollout

from respec_server.learn_receiver import Door, make_app
from sglang_respec.errors import RespecError
from sglang_respec.learner.chunk import encode_chunk
from sglang_respec.learner.rewards import RewardBook
from sglang_respec.learner.sources import SpoolSource
from sglang_respec.learner.spool import Spool

LIMIT = 1 << 16


class Opened:
    def __init__(self, folder: Path, key: str | None = None) -> None:
        self.spool = Spool(folder, 4 * LIMIT)
        self.book = RewardBook(100.0, "one")
        app = make_app(
            self.spool, self.book, lambda: {"state": "learning"}, admin_key=key,
            max_chunk_bytes=LIMIT,
        )  # fmt: skip
        self.door = Door(app, "127.0.0.1", 0)

    def post(self, path: str, headers: dict[str, str] | None = None, **body: object):
        return httpx.post(self.door.url + path, headers=headers, trust_env=False, **body)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    made = Opened(tmp_path)
    with made.door:
        yield made


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert "\n" not in error["message"]
    return error["message"]


def test_a_posted_chunk_is_read_by_the_source(opened: Opened) -> None:
    answer = opened.post("/samples", content=encode_chunk([markov_rollout(1), markov_rollout(2)]))
    assert answer.status_code == 202, answer.text
    assert answer.json() == {"chunks_waiting": 1, "chunks_dropped": 0}
    assert [s.request_id for s in SpoolSource(opened.spool).read()] == ["r1", "r2"]


@pytest.mark.parametrize("body", [b"", b"x" * 99, encode_chunk([markov_rollout(1)])[:-5]])
def test_what_is_no_chunk_is_refused_and_leaves_nothing(opened: Opened, body: bytes) -> None:
    refused(opened.post("/samples", content=body), 400, "bad_chunk")
    assert list(opened.spool.folder.iterdir()) == []


def test_a_chunk_beyond_the_limit_is_refused(opened: Opened) -> None:
    refused(opened.post("/samples", content=b"x" * (LIMIT + 1)), 413, "too_large")
    endless = (b"x" * 1024 for _ in range(100))  # without a length
    message = refused(opened.post("/samples", content=endless), 413, "too_large")
    assert "drafter" not in message
    packed = opened.post("/samples", headers={"Content-Encoding": "gzip"}, content=b"x")
    refused(packed, 415, "compressed")
    assert list(opened.spool.folder.iterdir()) == []


def test_rewards_reach_the_book(opened: Opened) -> None:
    rewards = [
        {"request_id": "r1", "reward": 1.0, "group": "g"},
        {"request_id": "r2", "reward": 0, "advantage": -0.5},
    ]
    answer = opened.post("/rewards", json={"rewards": rewards})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 2})
    opened.book.add([markov_rollout(1), markov_rollout(2)], 0.0)
    first, second = (each.reward for each in opened.book.release(0.0))
    assert (first.reward, first.group, first.advantage) == (1.0, "g", None)
    assert (second.reward, second.advantage) == (0.0, -0.5)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"rewards": []}',
        b'{"rewards": [{"request_id": "a"}]}',
        b'{"rewards": [{"request_id": "", "reward": 1}]}',
        b'{"rewards": [{"request_id": "a", "reward": NaN}]}',
        b'{"rewards": [{"request_id": "a", "reward": 1e999}]}',
        b'{"rewards": [{"request_id": "a", "reward": 1, "w": 2}]}',
        json.dumps({"rewards": [{"request_id": "a", "reward": 1}] * 4097}).encode(),
    ],
)
def test_wrong_rewards_are_refused_whole(opened: Opened, body: bytes) -> None:
    refused(opened.post("/rewards", content=body), 400, "bad_request")
    assert opened.book.counters()["early"] == 0


def test_rewards_are_bounded(opened: Opened) -> None:
    refused(opened.post("/rewards", content=b" " * (1 << 23)), 413, "too_large")


def test_the_key_is_asked_for(tmp_path: Path) -> None:
    made = Opened(tmp_path, key="secret")
    body = {"rewards": [{"request_id": "a", "reward": 1}]}
    with made.door:
        refused(made.post("/rewards", json=body), 401, "no_key")
        refused(made.post("/samples", content=b""), 401, "no_key")
        wrong = {"Authorization": "Bearer other"}
        refused(made.post("/rewards", headers=wrong, json=body), 401, "wrong_key")
        right = {"Authorization": "Bearer secret"}
        assert made.post("/rewards", headers=right, json=body).status_code == 202


def test_a_web_page_cannot_post(opened: Opened) -> None:
    page = {"Origin": "http://evil.example"}
    refused(opened.post("/rewards", headers=page, json={"rewards": []}), 403, "not_local")


def test_the_status_is_shown(opened: Opened) -> None:
    answer = httpx.get(opened.door.url + "/status", trust_env=False)
    assert answer.json() == {"state": "learning"}


def test_a_taken_port_is_one_sentence(opened: Opened) -> None:
    app = make_app(opened.spool, opened.book, dict, admin_key=None, max_chunk_bytes=1)
    with pytest.raises(RespecError, match="give another --port"):
        Door(app, "127.0.0.1", opened.door.port)
