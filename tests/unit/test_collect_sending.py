"""The collector's threads: rows to rollouts to chunks; receivers that fail, and too little room."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from respec_server.learn_receiver import Door, make_app
from sglang_respec.learner.chunk import encode_chunk, read_chunk
from sglang_respec.learner.collect import Collector, Part, StepRows
from sglang_respec.learner.collect_channels import open_channel
from sglang_respec.learner.collect_choice import BURST_S, Chooser
from sglang_respec.learner.collect_outbox import (
    CHUNK_BYTES,
    Channel,
    ChannelRefused,
    ChannelUnavailable,
    Outbox,
    Sender,
)
from sglang_respec.learner.collect_rollout import Finish, OpenRollout, RowFormat
from sglang_respec.learner.collect_top import pack_top
from sglang_respec.learner.rewards import RewardBook
from sglang_respec.learner.samples import RolloutSample
from sglang_respec.learner.spool import Spool

ROWS = RowFormat(torch.float32, 4, 2)
WAIT_S = 20.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LINGER_S", 0.01), ("FIRST_RETRY_S", 0.01), ("LAST_RETRY_S", 0.05)):
        monkeypatch.setattr(f"sglang_respec.learner.collect_outbox.{name}", seconds)


def sample(name: str, nbytes: int = 0) -> RolloutSample:
    width = max(1, nbytes // 4)
    top = pack_top(torch.zeros(1, 8), torch.ones(1), 2)
    return RolloutSample(
        request_id=name, prompt_tokens=1, first_aux=0, tokens=torch.zeros(2, dtype=torch.int32),
        aux=torch.zeros(1, width), top_ids=top[:, :2], top_logprobs=top[:, 2:4].view(torch.float32),
        tail_mass=top[:, 4].contiguous().view(torch.float32), seed=0, temperature=1.0,
        drafter_version=0, policy_version=0,
    )  # fmt: skip


class Scripted:
    """A channel that does what it is told, then takes everything."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers = list(answers)
        self.taken: list[bytes] = []
        self.tries = 0

    def send(self, chunk: bytes) -> None:
        self.tries += 1
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer
        self.taken.append(chunk)


@contextmanager
def sending(outbox: Outbox, channel: Channel, rate: float = 0.0) -> Iterator[None]:
    sender = Sender(outbox, channel, rate)
    sender.start()
    try:
        yield
    finally:
        outbox.close()
        sender.join(WAIT_S)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def names(chunk: bytes, folder: Path) -> list[str]:
    path = folder / "chunk"
    path.write_bytes(chunk)
    return [each.request_id for each in read_chunk(path)]


def test_a_receiver_that_comes_back_gets_the_same_chunk(tmp_path):
    outbox, channel = Outbox(1 << 20), Scripted(*[ChannelUnavailable("away")] * 3)
    outbox.add(sample("a"), 0.0)
    with sending(outbox, channel):
        until(lambda: outbox.counters().get("sent") == 1)
    assert channel.tries == 4
    assert names(channel.taken[0], tmp_path) == ["a"]
    assert outbox.counters()["sent_bytes"] == len(channel.taken[0])


def test_what_is_refused_is_not_sent_again(tmp_path):
    outbox, channel = Outbox(1 << 20), Scripted(ChannelRefused("bad"))
    outbox.add(sample("a"), 0.0)
    with sending(outbox, channel):
        until(lambda: outbox.counters().get("refused") == 1)
        outbox.add(sample("b"), 0.0)
        until(lambda: outbox.counters().get("sent") == 1)
    assert names(channel.taken[0], tmp_path) == ["b"]


def test_the_oldest_make_room_and_the_one_in_hand_is_older(tmp_path):
    class Closed:
        def __init__(self) -> None:
            self.open = threading.Event()
            self.taken: list[bytes] = []

        def send(self, chunk: bytes) -> None:
            if not self.open.is_set():
                raise ChannelUnavailable("closed")
            self.taken.append(chunk)

    outbox, channel = Outbox(3 * sample("x", 4000).nbytes), Closed()
    with sending(outbox, channel):
        outbox.add(sample("first", 4000), 0.0)
        until(lambda: outbox.counters()["waiting"] == 0)
        for i in range(6):
            outbox.add(sample(f"{i}", 4000), 0.0)
        assert outbox.waiting_bytes <= outbox.budget_bytes
        until(lambda: outbox.counters()["dropped_by_room"] >= 4)
        channel.open.set()
        until(lambda: outbox.counters()["waiting"] == 0)
        until(lambda: outbox.counters().get("sent", 0) + outbox.counts["dropped_by_room"] == 7)
    got = [name for chunk in channel.taken for name in names(chunk, tmp_path)]
    assert got[-1] == "5"
    assert "first" not in got
    assert got == sorted(got)


def test_chunks_are_of_one_size_and_hold_no_id_twice(tmp_path):
    outbox, channel = Outbox(8 * CHUNK_BYTES), Scripted()
    sizes = {"large": CHUNK_BYTES * 2, "a": CHUNK_BYTES // 5, "b": CHUNK_BYTES // 5}
    for name, size in sizes.items():
        outbox.add(sample(name, size), 0.0)
    outbox.add(sample("a", sizes["a"]), 0.0)
    with sending(outbox, channel):
        until(lambda: outbox.counters().get("sent") == 4)
    assert [names(each, tmp_path) for each in channel.taken] == [["large"], ["a", "b"], ["a"]]


def test_the_rate_is_kept():
    outbox, channel = Outbox(1 << 20), Scripted()
    one = len(encode_chunk([sample("a", 4000)]))
    with sending(outbox, channel, rate=one / WAIT_S):
        outbox.add(sample("a", 4000), 0.0)
        until(lambda: outbox.counters().get("sent") == 1)
        outbox.add(sample("b", 4000), 0.0)
        time.sleep(0.1)  # cannot fail wrongly: the second may go after WAIT_S
        assert outbox.counters()["sent"] == 1


def test_through_the_learners_door_and_into_a_folder(tmp_path):
    spool = Spool(tmp_path / "spool", 1 << 20)
    app = make_app(spool, RewardBook(0.0, "one"), dict, admin_key="k", max_chunk_bytes=100_000)
    chunk = encode_chunk([sample("a")])
    with Door(app, "127.0.0.1", 0) as door:
        open_channel(door.url, "k", 0).send(chunk)
        with pytest.raises(ChannelRefused, match="401"):
            open_channel(door.url, "wrong", 0).send(chunk)
        with pytest.raises(ChannelRefused, match="bad_chunk"):
            open_channel(door.url + "/samples", "k", 0).send(b"x" * 100)
        with pytest.raises(ChannelRefused, match="413"):
            open_channel(door.url, "k", 0).send(b"x" * 200_000)
        url = door.url
    with pytest.raises(ChannelUnavailable):
        open_channel(url, "k", 0).send(chunk)
    open_channel(str(tmp_path / "shared"), "", 1 << 20).send(chunk)
    for folder in (tmp_path / "spool", tmp_path / "shared"):
        (path,) = Spool(folder, 1 << 20).waiting()
        assert path.read_bytes() == chunk


class Server:
    """What a worker does with a collector."""

    def __init__(
        self,
        budget: int = 1 << 20,
        max_tokens: int = 100,
        started: bool = True,
        chooser: Chooser | None = None,
    ) -> None:
        self.outbox = Outbox(budget)
        chooser = chooser or Chooser(1.0, 0, 1, 0.0)
        self.collector = Collector(ROWS, chooser, self.outbox, max_tokens)
        if started:
            self.collector.start()

    def enter(self, name: str, prompt: int = 3) -> OpenRollout:
        found = self.collector.enter(name, prompt, 0, 1.0)
        assert found is not None
        return found

    def step(self, rollout: OpenRollout, position: int, rows: int, first: int, drawn: int) -> None:
        aux = torch.arange(position, position + rows).float()[:, None].expand(-1, 4).contiguous()
        top = pack_top(torch.zeros(drawn, 8), torch.ones(drawn), 2)
        part = Part(rollout, 0, rows, position, 0, drawn, first)
        self.collector.rows(StepRows(aux, top, [part]))

    def run(self, rollout: OpenRollout, answer: int) -> None:
        prompt = rollout.prompt_tokens
        self.step(rollout, 0, prompt, 0, 1)
        for i in range(answer - 1):
            self.step(rollout, prompt + i, 1, 1 + i, 1)
        self.collector.ended(rollout, Finish(range(prompt + answer), 1, 2))

    def counts(self) -> dict[str, Any]:
        self.collector.stop(WAIT_S)
        return self.outbox.counters()


def test_rollouts_side_by_side():
    server = Server()
    both = [server.enter("a"), server.enter("b", prompt=5)]
    server.step(both[0], 0, 3, 0, 1)
    server.run(both[1], 4)
    server.step(both[0], 3, 2, 1, 2)
    server.collector.ended(both[0], Finish(range(6), 1, 2))
    assert server.counts()["collected"] == 2
    b, a = server.outbox.take()
    assert (b.request_id, a.request_id) == ("b", "a")
    assert a.aux[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert b.aux[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_prompts_that_fill_the_room_are_left_out():
    assert Server(max_tokens=10).collector.enter("a", 10, 0, 1.0) is None


def test_a_request_that_is_let_go_of_is_counted_and_gives_its_room_back():
    rate, now = 1.0, time.monotonic()
    server = Server(chooser=Chooser(1.0, rate, int(rate * BURST_S), now))
    server.step(aborted := server.enter("aborted"), 0, 3, 0, 1)
    until(lambda: server.collector.under_way_bytes > 0)
    assert server.collector.enter("no room", 3, 0, 1.0) is None
    del aborted
    until(lambda: server.outbox.counters().get("unfinished") == 1)
    assert server.collector.under_way_bytes == 0
    assert server.enter("room again")


def test_a_missing_row_is_counted():
    server = Server()
    rollout = server.enter("a")
    server.step(rollout, 0, 3, 0, 1)
    server.collector.ended(rollout, Finish(range(6), 0, 0))
    assert server.counts()["incomplete"] == 1


def test_rollouts_under_way_make_room_too():
    size = OpenRollout("x", 3, 0, 1.0, ROWS, 100).nbytes
    server = Server(budget=3 * size + size // 2)
    rollouts = [server.enter(str(i)) for i in range(6)]
    for each in rollouts:
        server.run(each, 3)
    counts = server.counts()
    assert counts["dropped_by_room"] + counts["collected"] >= 6
    assert counts["waiting_bytes"] + server.collector.under_way_bytes <= server.outbox.budget_bytes
    assert server.outbox.take()[-1].request_id == "5", "the newest is kept"


def test_rows_that_pile_up_are_dropped_and_spoil_their_rollouts():
    server = Server(budget=2000, started=False)
    rollout = server.enter("a")
    for i in range(100):
        server.step(rollout, 3 + i, 1, 1 + i, 1)
    assert rollout.dropped, "before anybody looked at the rows"
    server.collector.start()
    server.collector.ended(rollout, Finish(range(104), 0, 0))
    counts = server.counts()
    assert counts["dropped_by_room"] == 1
    assert "collected" not in counts
