"""Checkpoints, the publisher and the HTTP sink: conditional, idempotent, one at a time."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from drafter_toys import make_file
from learner_toys import make_drafter, markov_rollout, recording_server
from local_server import serve_local

from respec_server.learn_sink import HttpSink
from sglang_respec.errors import RespecError
from sglang_respec.learner.baseline import Baseline
from sglang_respec.learner.batches import windows
from sglang_respec.learner.checkpoint import drafter_tensors, load_drafter
from sglang_respec.learner.publisher import (
    Candidate,
    Publisher,
    Serving,
    SinkUnavailable,
    VersionConflict,
    WeightsRefused,
)
from sglang_respec.learner.settings import LearnerSettings
from sglang_respec.learner.store import Checkpoint, CheckpointStore, sha256_of
from sglang_respec.learner.trainer import Trainer

FIRST = Serving(0, "")
SETTINGS = LearnerSettings(steps=2, learning_rate=0.01, warmup_steps=3)


def trained(updates: int) -> Trainer:
    trainer = Trainer(make_drafter(), SETTINGS)
    for _ in range(updates):
        trainer.update(list(windows(markov_rollout(1), 64)))
    return trainer


def save(
    store: CheckpointStore, trainer: Trainer, serving: str = "", in_flight: str = ""
) -> Checkpoint:
    return store.save(
        trainer.drafter, trainer.state_tensors(), step=trainer.step, base_version=4,
        serving_sha256=serving, reference_length=2.5, last_publish_step=1, in_flight=in_flight,
    )  # fmt: skip


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    straight = trained(6)
    save(CheckpointStore(tmp_path, 3), trained(4))
    found = CheckpointStore(tmp_path, 3).latest()
    assert found is not None
    assert (found.state.base_version, found.state.reference_length) == (4, 2.5)
    resumed = Trainer(make_drafter(seed=9), SETTINGS)
    resumed.restore(found.trainer_tensors(), found.state.step)
    for _ in range(2):
        resumed.update(list(windows(markov_rollout(1), 64)))
    for name, tensor in straight.drafter.state_dict().items():
        assert torch.equal(tensor, resumed.drafter.state_dict()[name]), name
    for name, tensor in straight.averaged.state_dict().items():
        assert torch.equal(tensor, resumed.averaged.state_dict()[name]), name


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_what_may_serve_is_the_running_average_of_what_was_trained(keep: float) -> None:
    settings = dataclasses.replace(SETTINGS, average=keep)
    trainer = Trainer(make_drafter(), settings)
    expected = {name: each.double() for name, each in trainer.drafter.named_parameters()}
    for _ in range(5):
        trainer.update(list(windows(markov_rollout(1), 64)))
        for name, parameter in trainer.drafter.named_parameters():
            expected[name] = expected[name] * keep + parameter.double() * (1 - keep)
    for name, parameter in trainer.averaged.named_parameters():
        assert torch.allclose(parameter.double(), expected[name], rtol=1e-5, atol=1e-7), name
        assert torch.equal(parameter, trainer.drafter.get_parameter(name)) == (keep == 0), name


def test_a_checkpoint_is_a_drafter_and_its_hash_that_of_the_push(tmp_path: Path) -> None:
    trainer = trained(2)
    checkpoint = save(CheckpointStore(tmp_path, 3), trainer)
    assert checkpoint.state.sha256 == sha256_of(checkpoint.weights)
    loaded = load_drafter(checkpoint.folder, trainer.drafter.embed_tokens)
    for name, tensor in drafter_tensors(trainer.drafter).items():
        assert torch.equal(tensor, loaded.state_dict()[name].to(tensor.dtype)), name


def test_old_checkpoints_go_and_the_one_that_serves_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 2)
    trainer = trained(1)
    first = save(store, trainer)
    for _ in range(4):
        trainer.update(list(windows(markov_rollout(1), 64)))
        save(store, trainer, serving=first.state.sha256)
    steps = [int(path.name.removeprefix("step-")) for path in sorted(tmp_path.iterdir())]
    assert steps == [1, 4, 5]
    assert store.find(first.state.sha256) == first
    assert store.find("0" * 64) is None


def test_weights_that_are_being_pushed_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 1)
    trainer = trained(1)
    pushing = save(store, trainer)
    for _ in range(2):
        trainer.update(list(windows(markov_rollout(1), 64)))
        save(store, trainer, in_flight=pushing.state.sha256)
    assert pushing.weights.exists()
    trainer.update(list(windows(markov_rollout(1), 64)))
    save(store, trainer)
    assert not pushing.folder.exists()


def test_half_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    whole = save(CheckpointStore(tmp_path, 3), trained(1))
    shutil.copytree(whole.folder, tmp_path / ".partial-x")
    found = CheckpointStore(tmp_path, 3)
    assert found.latest() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    (whole.folder / "state.json").write_text("{")
    with pytest.raises(RespecError, match="remove it"):
        found.latest()


def test_an_update_that_is_not_finite_changes_nothing() -> None:
    trainer = trained(1)
    before = {name: each.clone() for name, each in trainer.drafter.state_dict().items()}
    (part,) = windows(markov_rollout(2), 64, weight=float("inf"))
    figures = trainer.update([part])
    assert not figures.applied
    for name, tensor in trainer.drafter.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class ScriptedSink:
    """Answers pushes from a list; remembers what was asked."""

    def __init__(self, *answers: object, serving: Serving = FIRST) -> None:
        self.answers, self.now = list(answers), serving
        self.pushed: list[tuple[str, int]] = []

    def serving(self) -> Serving:
        return self.now

    def push(self, weights: Path, *, sha256: str, label: str, base_version: int) -> Serving:
        self.pushed.append((sha256, base_version))
        answer = self.answers.pop(0)
        if isinstance(answer, Serving):
            self.now = answer
            return answer
        if isinstance(answer, tuple):  # what came to serve, and what the pusher is told
            self.now, answer = answer
        raise answer  # type: ignore[misc]


def candidate(base: Serving = FIRST) -> Candidate:
    return Candidate(Path("w"), "a" * 64, "learner-7", base, 7, 3.0)


def outcome(sink: ScriptedSink, base: Serving = FIRST, give_up_s: float = 60.0):
    publisher = Publisher(sink, give_up_s=give_up_s, sleep=lambda _: None)
    publisher.submit(candidate(base))
    found = publisher.take(wait=True)
    publisher.close()
    assert found is not None
    return found


def test_a_push_is_conditional_on_its_base() -> None:
    sink = ScriptedSink(Serving(1, "a" * 64))
    found = outcome(sink)
    assert (found.result, found.serving) == ("published", Serving(1, "a" * 64))
    assert sink.pushed == [("a" * 64, 0)]


def test_what_serves_already_is_not_pushed_again() -> None:
    sink = ScriptedSink(serving=Serving(5, "a" * 64))
    assert outcome(sink, Serving(4, "b" * 64)).result == "published"
    assert sink.pushed == []


@pytest.mark.parametrize("serving", [Serving(2, "c" * 64), Serving(0, "c" * 64)])
def test_another_version_is_not_overwritten_unseen(serving: Serving) -> None:
    sink = ScriptedSink(serving=serving)
    found = outcome(sink)
    assert (found.result, found.serving) == ("moved", serving)
    assert sink.pushed == []


def test_a_conflict_asks_again_what_serves() -> None:
    sink = ScriptedSink((Serving(1, "d" * 64), VersionConflict("x")))
    found = outcome(sink)
    assert (found.result, found.serving) == ("moved", Serving(1, "d" * 64))
    assert len(sink.pushed) == 1


def test_a_lost_answer_is_found_out() -> None:
    """The push arrived and its answer did not: the hash tells, and nothing is pushed twice."""
    sink = ScriptedSink((Serving(1, "a" * 64), SinkUnavailable("cut")))
    found = outcome(sink)
    assert (found.result, found.serving) == ("published", Serving(1, "a" * 64))
    assert len(sink.pushed) == 1


def test_refused_weights_are_not_tried_again() -> None:
    sink = ScriptedSink(WeightsRefused("422: no"))
    assert outcome(sink).result == "refused"
    assert len(sink.pushed) == 1


def test_an_unreachable_server_is_given_up_in_time() -> None:
    sink = ScriptedSink(*[SinkUnavailable("down")] * 50)
    found = outcome(sink, give_up_s=0.6)
    assert (found.result, found.serving) == ("unavailable", None)
    assert len(sink.pushed) >= 2


def test_one_push_at_a_time() -> None:
    release = threading.Event()

    class SlowSink(ScriptedSink):
        def serving(self) -> Serving:
            release.wait(60)
            return super().serving()

    publisher = Publisher(SlowSink(Serving(1, "a" * 64)), give_up_s=1.0)
    publisher.submit(candidate())
    assert publisher.busy
    assert publisher.take() is None
    with pytest.raises(RuntimeError, match="in flight"):
        publisher.submit(candidate())
    release.set()
    assert publisher.take(wait=True) is not None
    assert not publisher.busy
    publisher.close()


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, str]:
    path = save(CheckpointStore(tmp_path, 1), trained(1)).weights
    return path, sha256_of(path)


def test_the_sink_speaks_the_server_s_language(weights: tuple[Path, str]) -> None:
    path, sha256 = weights
    with recording_server() as server:
        sink = HttpSink(server.url, "secret")
        assert sink.serving() == Serving(0, "")
        pushed = sink.push(path, sha256=sha256, label="learner-3", base_version=0)
        assert pushed == sink.serving() == Serving(1, sha256)
        assert server.bodies == [path.read_bytes()]
        assert server.labels == ["learner-3"]
        assert server.keys == {"Bearer secret"}
        with pytest.raises(VersionConflict):
            sink.push(path, sha256=sha256, label="", base_version=0)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((409, "rolled_back"), WeightsRefused),
        ((422, "wrong_tensors"), WeightsRefused),
        ((401, "no_key"), WeightsRefused),
        ((409, "busy"), SinkUnavailable),
        ((503, "staging_failed"), SinkUnavailable),
        ((507, "disk_full"), SinkUnavailable),
    ],
)
def test_refusals_are_told_apart(
    weights: tuple[Path, str], answer: tuple[int, str], error: type[Exception]
) -> None:
    path, sha256 = weights
    with recording_server() as server:
        server.refuse_with = answer
        with pytest.raises(error, match=f"{answer[0]}: No."):
            HttpSink(server.url).push(path, sha256=sha256, label="", base_version=0)


def test_nobody_there_is_unavailable(weights: tuple[Path, str]) -> None:
    with recording_server() as server:
        url = server.url
    with pytest.raises(SinkUnavailable, match="does not answer"):
        HttpSink(url, timeout_s=5.0).serving()
    with pytest.raises(RespecError, match="http://HOST:PORT"):
        HttpSink("127.0.0.1:30000")


def test_the_baseline_follows_what_serves(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 3)
    first, trainer = make_drafter(), trained(2)
    checkpoint = save(store, trainer)
    baseline = Baseline(first, Serving(0, ""))
    assert baseline.reference(2.0) == 2.0
    assert baseline.reference(1.0) == 2.0
    baseline.published(Serving(1, checkpoint.state.sha256), store, 3.0)
    assert baseline.reference(1.0) == 3.0
    pushed = drafter_tensors(trainer.drafter)["fc.weight"].float()
    assert torch.equal(baseline.drafter.fc.weight, pushed)
    assert torch.equal(baseline.rounded(trainer.drafter).fc.weight, pushed)
    assert not baseline.rebase(Serving(2, "e" * 64), store)  # somebody else's: the copy stays
    assert torch.equal(baseline.drafter.fc.weight, pushed)
    assert baseline.rebase(Serving(0, ""), store)  # the server was started again
    assert torch.equal(baseline.drafter.fc.weight, first.fc.weight)
    assert baseline.reference_length is None


def test_the_state_is_readable_by_others(tmp_path: Path) -> None:
    checkpoint = save(CheckpointStore(tmp_path, 1), trained(1))
    state = json.loads((checkpoint.folder / "state.json").read_text())
    assert state["step"] == 1
    assert state["sha256"] == sha256_of(checkpoint.weights)


def test_the_sink_and_the_server_s_real_routes_agree(tmp_path: Path) -> None:
    """The recording server above is ours; these are the routes that a server mounts."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(make_file(3.0))
    second.write_bytes(make_file(4.0))
    with serve_local() as server:
        sink = HttpSink(server.url)
        assert sink.serving() == Serving(0, "")
        pushed = sink.push(first, sha256=sha256_of(first), label="learner-1", base_version=0)
        assert pushed == sink.serving() == Serving(1, sha256_of(first))
        assert server.engine.serving_value() == {3.0}
        with pytest.raises(VersionConflict):
            sink.push(second, sha256=sha256_of(second), label="", base_version=0)
        # Idempotent: these weights serve, whatever the base says.
        again = sink.push(first, sha256=sha256_of(first), label="", base_version=0)
        assert again == Serving(1, sha256_of(first))
        with pytest.raises(WeightsRefused, match="400"):
            sink.push(second, sha256="0" * 64, label="", base_version=1)
    with serve_local(admin_key="secret") as server, pytest.raises(WeightsRefused, match="401"):
        HttpSink(server.url).push(first, sha256=sha256_of(first), label="", base_version=0)
