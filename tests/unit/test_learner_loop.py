"""The whole learner in one process: toy rollouts in, judged weights out, any server."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from learner_toys import RecordingServer, make_drafter, markov_rollout, recording_server

from respec_server.learn_sink import HttpSink
from sglang_respec.errors import RespecError
from sglang_respec.learner.acceptance import Acceptance
from sglang_respec.learner.baseline import Baseline
from sglang_respec.learner.batches import windows
from sglang_respec.learner.eagle3 import Eagle3Drafter
from sglang_respec.learner.gate import EveryUpdates, Judgement, OnDecay, publish_policy
from sglang_respec.learner.journal import Journal, plot_journal, read_journal
from sglang_respec.learner.loop import Learner
from sglang_respec.learner.publisher import Publisher
from sglang_respec.learner.replay import ReplayBuffer, ReplayLimits
from sglang_respec.learner.rewards import RewardBook
from sglang_respec.learner.samples import RolloutSample
from sglang_respec.learner.settings import LearnerSettings
from sglang_respec.learner.store import CheckpointStore
from sglang_respec.learner.trainer import Trainer

SETTINGS = LearnerSettings(
    steps=2, window_tokens=64, batch_tokens=512, learning_rate=0.02, warmup_steps=0, clip_norm=10.0,
    reuse=1e6, least_tokens=100, judge_every=5, least_held_out=3, held_out_share=3,
)  # fmt: skip


class ListSource:
    """Rollouts from a list, a few at a time."""

    def __init__(self, samples: Sequence[RolloutSample]) -> None:
        self.left = list(samples)

    def read(self) -> list[RolloutSample]:
        taken, self.left = self.left[:4], self.left[4:]
        return taken

    def counters(self) -> dict[str, int]:
        return {"left": len(self.left)}


def make_learner(
    folder: Path,
    server: RecordingServer,
    settings: LearnerSettings = SETTINGS,
    source=None,
    drafter: Eagle3Drafter | None = None,
) -> Learner:
    store = CheckpointStore(folder / "checkpoints", 3)
    sink, drafter = HttpSink(server.url), drafter or make_drafter()
    baseline = Baseline(drafter, sink.serving())
    baseline.rebase(sink.serving(), store)
    learner = Learner(
        source=source or ListSource([markov_rollout(i) for i in range(60)]),
        book=RewardBook(0.0, "one"),
        buffer=ReplayBuffer(ReplayLimits(10**6, 10**6, 9, 1e9, settings.held_out_share)),
        trainer=Trainer(drafter, settings), baseline=baseline, policy=publish_policy(settings),
        publisher=Publisher(sink, give_up_s=5.0), store=store,
        journal=Journal(folder / "journal.jsonl"), settings=settings,
    )  # fmt: skip
    if (latest := store.latest()) is not None:
        learner.resume(latest)
    return learner


def events(folder: Path, kind: str) -> list[dict]:
    return [each for each in read_journal(folder / "journal.jsonl") if each["event"] == kind]


def run_until(learner: Learner, done: Callable[[], bool], max_updates: int = 400) -> None:
    """Run the learner in a thread until something is true, or its updates are used up."""
    stop = threading.Event()
    thread = threading.Thread(target=learner.run, args=(stop,), kwargs={"max_updates": max_updates})
    thread.start()
    while thread.is_alive() and not done():
        time.sleep(0.01)
    stop.set()
    thread.join()


def test_the_loss_falls_and_better_weights_arrive(tmp_path: Path) -> None:
    with recording_server() as server:
        learner = make_learner(tmp_path, server)
        run_until(learner, lambda: server.version >= 2)
        assert server.version >= 2
        updates, judged = events(tmp_path, "update"), events(tmp_path, "judged")
        assert updates[-1]["kl"][0] < 0.7 * updates[0]["kl"][0]
        assert judged[-1]["candidate"] > judged[0]["serving"]
        published = events(tmp_path, "published")
        assert [each["sha256"] for each in published] == list(server.hashes.values())[1:]
        # What arrived lies in a checkpoint, byte for byte.
        store = CheckpointStore(tmp_path / "checkpoints", 3)
        last = store.find(server.hashes[server.version])
        assert last is not None
        assert last.weights.read_bytes() == server.bodies[-1]
        status = learner.status()
        assert status["serving_version"] == server.version
        assert status["pushes"]["published"] == server.version
        assert json.dumps(status)


def test_nothing_goes_out_while_the_serving_drafter_holds(tmp_path: Path) -> None:
    settled = replace(SETTINGS, learning_rate=1e-12)
    with recording_server() as server:
        learner = make_learner(tmp_path, server, settled)
        run_until(learner, lambda: len(events(tmp_path, "judged")) >= 3)
        assert server.bodies == []
        assert [each["decay"] for each in events(tmp_path, "judged")] == [0.0] * 3


def test_the_gate_holds_back_what_accepts_less(tmp_path: Path) -> None:
    """A good drafter, a rate that ruins it and a policy that always wants to push."""
    good = Trainer(make_drafter(), SETTINGS)
    for _ in range(60):
        good.update([part for i in range(12) for part in windows(markov_rollout(i), 64)])
    ruinous = replace(SETTINGS, learning_rate=30.0, clip_norm=1e9, publish="interval", interval=1)
    with recording_server() as server:
        learner = make_learner(tmp_path, server, ruinous, drafter=good.drafter)
        run_until(learner, lambda: len(events(tmp_path, "judged")) >= 3)
        worse = {
            each["step"]
            for each in events(tmp_path, "judged")
            if each["candidate"] < each["serving"]
        }
        assert worse
        assert learner.status()["pushes"]["held_back"] == len(worse)
        assert not worse & {each["step"] for each in events(tmp_path, "published")}


def test_another_pusher_is_noticed_and_the_next_push_is_on_its_version(tmp_path: Path) -> None:
    with recording_server() as server:
        learner = make_learner(tmp_path, server)
        server.serve("f" * 64)
        run_until(learner, lambda: bool(server.bodies))
        rebased = events(tmp_path, "rebased")[0]
        assert (rebased["version"], rebased["known"]) == (1, False)
        assert server.version >= 2


def test_a_guard_that_takes_the_weights_back_is_noticed(tmp_path: Path) -> None:
    with recording_server() as server:
        learner = make_learner(tmp_path, server)

        def back_once() -> bool:
            if len(server.bodies) == 1 and server.version == 1:
                server.serve("")  # as a guard brings the first drafter back
            return len(events(tmp_path, "rebased")) > 0 and len(server.bodies) >= 2

        run_until(learner, back_once)
        assert events(tmp_path, "rebased")[-1]["known"]
        assert len(server.bodies) >= 2


def test_a_server_that_restarts_gets_the_weights_again(tmp_path: Path) -> None:
    with recording_server() as server:
        port = server.port
        learner = make_learner(tmp_path, server)
        stop = threading.Event()
        thread = threading.Thread(target=learner.run, args=(stop,), kwargs={"max_updates": 2000})
        thread.start()
        while thread.is_alive() and not server.bodies:
            time.sleep(0.01)
    try:
        with recording_server(port) as again:
            while thread.is_alive() and not again.bodies:
                time.sleep(0.01)
            assert again.version >= 1
    finally:
        stop.set()
        thread.join()


def test_refused_weights_are_not_sent_again(tmp_path: Path) -> None:
    with recording_server() as server:
        server.refuse_with = (422, "wrong_tensors")
        learner = make_learner(tmp_path, server)
        run_until(learner, lambda: len(events(tmp_path, "refused")) >= 2)
        hashes = [each["sha256"] for each in events(tmp_path, "refused")]
        assert len(hashes) == len(set(hashes)) >= 2


def test_what_ends_the_collector_ends_the_learner(tmp_path: Path) -> None:
    class BrokenSource(ListSource):
        def read(self) -> list[RolloutSample]:
            raise RespecError("The folder is gone.")

    with recording_server() as server:
        learner = make_learner(tmp_path, server, source=BrokenSource([]))
        with pytest.raises(RespecError, match="folder is gone"):
            learner.run(threading.Event())


def test_a_token_is_learned_from_only_so_often(tmp_path: Path) -> None:
    once = replace(SETTINGS, reuse=1.0, least_held_out=1000)
    source = ListSource([markov_rollout(i) for i in range(60)])
    with recording_server() as server:
        learner = make_learner(tmp_path, server, once, source)
        run_until(learner, lambda: not source.left and _settled(tmp_path))
        used = sum(each["tokens"] for each in events(tmp_path, "update"))
        here = learner.status()["buffer"]["train_tokens"]
        assert here <= used <= here + once.batch_tokens


def _settled(folder: Path) -> bool:
    """No update for a while."""
    updates = events(folder, "update")
    return bool(updates) and time.time() - updates[-1]["at"] > 1.0


def test_a_learner_that_ended_goes_on(tmp_path: Path) -> None:
    with recording_server() as server:
        run_until(make_learner(tmp_path, server), lambda: False, max_updates=12)
        learner = make_learner(tmp_path, server)
        assert learner.status()["updates"] == 12
        run_until(learner, lambda: False, max_updates=20)
        assert [each["step"] for each in events(tmp_path, "update")] == list(range(1, 21))
        assert len(set(server.hashes.values())) == len(server.hashes)


def judgement(serving: float, candidate: float, reference: float, since: int = 5) -> Judgement:
    def of(length: float) -> Acceptance:
        return Acceptance(tokens=round(1000 * length), rounds=1000)

    return Judgement(10, 9, of(serving), of(candidate), reference, since)


def test_decay_is_against_the_better_of_past_and_candidate() -> None:
    policy = OnDecay(0.05)
    assert not policy.due(judgement(3.0, 3.1, 3.0))
    assert policy.due(judgement(2.8, 2.85, 3.0))
    assert policy.due(judgement(3.0, 3.2, 3.0))
    assert judgement(3.0, 2.0, 2.0).decay == 0.0
    assert judgement(3.0, 3.0, 3.0).passes
    assert not judgement(3.0, 2.999, 3.0).passes


def test_the_interval_counts_updates() -> None:
    assert EveryUpdates(5).due(judgement(3, 3, 3, since=5))
    assert not EveryUpdates(5).due(judgement(3, 3, 3, since=4))
    assert publish_policy(replace(SETTINGS, publish="interval", interval=7)) == EveryUpdates(7)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "more than 0"),
        ({"weight_clip": 0.5}, "1 or more"),
        ({"learning_rate": float("nan")}, "more than 0"),
        ({"publish": "often"}, "decay, interval"),
        ({"window_tokens": 64, "steps": 8}, "72 or more"),
        ({"seed": True}, "must be a int"),
    ],
)
def test_wrong_settings_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(RespecError, match=words):
        replace(SETTINGS, **changes)


def test_a_torn_journal_is_read_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.write("update", step=1, loss=2.0, kl=[2.0])
    journal.close()
    with path.open("a") as file:
        file.write('{"event": "upd')
    journal = Journal(path)
    journal.write("update", step=2, loss=1.0, kl=[1.0])
    journal.close()
    assert [each["step"] for each in read_journal(path)] == [1, 2]
    plot_journal(path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    Journal(tmp_path / "empty").close()
    with pytest.raises(RespecError, match="no updates yet"):
        plot_journal(tmp_path / "empty", tmp_path / "x.png")
