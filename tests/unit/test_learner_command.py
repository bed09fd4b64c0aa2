"""`respec learn` itself: the bundled pair through the real door, and a process that is killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch
from learner_toys import (
    EMBEDDING,
    RecordingServer,
    make_drafter,
    markov_rollout,
    recording_server,
)
from safetensors.torch import load, load_file, save_file

from respec_server.cli import main
from respec_server.learn import learn, make_parser, settings_of
from respec_server.process import free_port
from sglang_respec.learner.checkpoint import load_drafter, save_drafter
from sglang_respec.learner.chunk import encode_chunk
from sglang_respec.learner.journal import read_journal
from sglang_respec.learner.store import CheckpointStore, sha256_of

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "sglang_respec" / "demo_models"
KILLS = 3


def post(port: int, path: str, **body: object) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{port}{path}", timeout=30, trust_env=False, **body)


def get(port: int, path: str) -> httpx.Response:
    """With patience: a learner that imports beside a full test run answers late."""
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=60, trust_env=False)


def wait_for_door(port: int, alive) -> None:
    while alive():
        try:
            get(port, "/status")
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the learner ended before it listened")


@pytest.fixture(scope="module")
def bundled_rollouts() -> list:
    sys.path.append(str(ROOT / "scripts"))
    from demo.coupled import coupled_rollouts
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sglang_respec.demo_task import make_problem

    target = AutoModelForCausalLM.from_pretrained(MODELS / "target", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "target")
    problems = [make_problem(900 + i, "held_out") for i in range(24)]
    return coupled_rollouts(
        target, tokenizer, problems, temperature=1.0, first_seed=50, max_new_tokens=48
    )


def spoilt_drafter(folder: Path) -> Path:
    """The bundled drafter with noise on what fuses the target's states, as after a policy moved."""
    embedding = load_file(MODELS / "target/model.safetensors")["model.embed_tokens.weight"]
    drafter = load_drafter(MODELS / "drafter", embedding)
    torch.manual_seed(0)
    with torch.no_grad():
        weight = drafter.fc.weight
        weight.add_(torch.randn_like(weight) * 0.5 * weight.std())
    save_drafter(drafter, folder)
    return folder


def test_the_bundled_pair_from_rollouts_over_http_to_a_push(
    tmp_path: Path, bundled_rollouts: list
) -> None:
    port = free_port()
    with recording_server() as server:
        options = make_parser().parse_args(
            ["--model-path", str(MODELS / "target"), "--server", server.url,
             "--drafter-path", str(spoilt_drafter(tmp_path / "spoilt")), "--port", str(port),
             "--output", str(tmp_path / "out"), "--learning-rate", "0.001", "--warmup-steps", "2",
             "--batch-tokens", "1024", "--window-tokens", "256", "--steps", "3", "--reuse", "1e6",
             "--least-tokens", "500", "--judge-every", "10", "--least-held-out", "3",
             "--held-out-share", "4", "--weight", "reward", "--reward-window-s", "60"]
        )  # fmt: skip
        stop = threading.Event()
        thread = threading.Thread(target=learn, args=(options, settings_of(options), stop))
        thread.start()
        try:
            wait_for_door(port, thread.is_alive)
            rewards = [
                {"request_id": each.request_id, "reward": i % 2}
                for i, each in enumerate(bundled_rollouts)
            ]
            assert post(port, "/rewards", json={"rewards": rewards[:12]}).status_code == 202
            for first in (0, 12):
                chunk = encode_chunk(bundled_rollouts[first : first + 12])
                assert post(port, "/samples", content=chunk).status_code == 202
            assert post(port, "/rewards", json={"rewards": rewards[12:]}).status_code == 202
            while thread.is_alive() and not server.bodies:
                time.sleep(0.05)
            status = get(port, "/status").json()
        finally:
            stop.set()
            thread.join()
    assert status["rewards"]["matched"] == 24
    assert server.bodies
    pushed = load(server.bodies[0])
    assert set(pushed) == set(load_file(MODELS / "drafter/model.safetensors"))
    events = read_journal(tmp_path / "out/journal.jsonl")
    losses = [each["kl"][0] for each in events if each["event"] == "update"]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    judged = [each for each in events if each["event"] == "judged"]
    assert judged[-1]["candidate"] > judged[0]["serving"]
    assert (
        main(["learn", "--output", str(tmp_path / "out"), "--plot", str(tmp_path / "c.png")]) == 0
    )
    assert (tmp_path / "c.png").stat().st_size > 1000


class LearnProcess:
    """`respec learn` with the toy pair as a process of its own."""

    def __init__(self, folder: Path, server: RecordingServer, port: int) -> None:
        command = [
            sys.executable, "-m", "respec_server", "learn", "--model-path", str(folder / "target"),
            "--drafter-path", str(folder / "drafter"), "--server", server.url,
            "--source", str(folder / "spool"), "--output", str(folder / "out"),
            "--port", str(port), "--steps", "2", "--window-tokens", "64", "--batch-tokens", "256",
            "--learning-rate", "0.002", "--reuse", "1e6", "--least-tokens", "60",
            "--judge-every", "3", "--least-held-out", "2", "--held-out-share", "3",
            "--checkpoint-every", "2", "--publish", "interval", "--interval", "3",
        ]  # fmt: skip
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(120)


@pytest.fixture
def toy_folder(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    save_file({"model.embed_tokens.weight": EMBEDDING}, tmp_path / "target/model.safetensors")
    save_drafter(make_drafter(), tmp_path / "drafter", torch.float32)
    return tmp_path


def feed(folder: Path, first: int) -> None:
    from sglang_respec.learner.spool import Spool

    samples = [markov_rollout(i) for i in range(first, first + 30)]
    Spool(folder / "spool", 1 << 30).add(encode_chunk(samples))


def steps_done(folder: Path) -> int:
    path = folder / "out/journal.jsonl"
    events = read_journal(path) if path.exists() else []
    return max((each["step"] for each in events if each["event"] == "update"), default=0)


def test_killed_at_any_moment_it_goes_on(toy_folder: Path) -> None:
    """kill -9 several times, each after a few more updates than the last checkpoint had: what is
    found is whole, what was pushed is not pushed again, and the updates go on."""
    port = free_port()
    with recording_server() as server:
        for kill in range(KILLS):
            feed(toy_folder, 30 * kill)
            before = steps_done(toy_folder)
            learner = LearnProcess(toy_folder, server, port)
            # Later in its life each time, so that kills fall into different stages.
            while learner.alive() and steps_done(toy_folder) < before + 3 + 2 * kill:
                time.sleep(0.001)
            assert learner.alive(), learner.log.read_text()
            assert learner.end(signal.SIGKILL) == -signal.SIGKILL
            store = CheckpointStore(toy_folder / "out/checkpoints", 3)
            latest = store.latest()
            assert latest is not None
            assert sha256_of(latest.weights) == latest.state.sha256
            assert latest.trainer_tensors()["param.fc.weight"].isfinite().all()
            # What serves can be found again.
            if server.version:
                assert store.find(server.hashes[server.version]) is not None
        pushed = [each for each in server.hashes.values() if each]
        assert len(pushed) == len(set(pushed))
        feed(toy_folder, 1000)
        learner = LearnProcess(toy_folder, server, port)
        goal, pushes = steps_done(toy_folder) + 10, len(server.bodies)
        while learner.alive() and (steps_done(toy_folder) < goal or len(server.bodies) == pushes):
            time.sleep(0.01)
        assert learner.end(signal.SIGTERM) == 0, learner.log.read_text()
    events = read_journal(toy_folder / "out/journal.jsonl")
    resumed = [each["step"] for each in events if each["event"] == "resumed"]
    assert len(resumed) == KILLS
    assert resumed == sorted(resumed)
    assert resumed[-1] > 0
    assert events[-1]["event"] == "ended"
    assert CheckpointStore(toy_folder / "out/checkpoints", 3).latest().state.step >= goal


def test_it_waits_for_a_server_that_is_not_there_yet(toy_folder: Path) -> None:
    with recording_server() as server:
        port = server.port
    door = free_port()
    learner = LearnProcess(toy_folder, server, door)
    try:
        wait_for_door(door, learner.alive)
        status = get(door, "/status").json()
        assert status == {"state": "starting"}
        with recording_server(port):
            while learner.alive() and status["state"] == "starting":
                time.sleep(0.05)
                status = get(door, "/status").json()
            assert status["state"] == "learning"
    finally:
        assert learner.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs --model-path, --drafter-path, --server"),
        (["--host", "0.0.0.0"], "give an --admin-key"),  # noqa: S104
        (["--server", "nowhere"], "http://HOST:PORT"),
        (["--steps", "0"], "steps must be more than 0"),
        (["--device", "nonsense"], "try cpu"),
        (["--plot", "x.png", "--output", "nothing"], "journal"),
    ],
)
def test_mistakes_are_one_sentence(
    toy_folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(toy_folder)
    paths = [
        "--model-path",
        "target",
        "--drafter-path",
        "drafter",
        "--server",
        "http://127.0.0.1:1",
    ]
    given = [*paths, "--port", str(free_port()), *arguments] if arguments else []
    assert main(["learn", *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("respec: ")
    assert words in said
    assert "Traceback" not in said


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["learn", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for flag in ("--weight", "--reward-window-s", "--publish", "--source", "--plot"):
        assert flag in said
