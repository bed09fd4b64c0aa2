"""Trainers and servers that die in the middle of a push, on a real server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import httpx
import psutil
import pytest
import torch
from drafter_files import tensors, trained
from rollouts import generate
from safetensors.torch import save
from serving import Servers, http_process, speculation
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from respec_server.bundled import demo_models
from respec_server.client import DrafterClient
from respec_server.cpu_environ import CPU_ENVIRON
from respec_server.process import ServerProcess, free_port

pytestmark = pytest.mark.server

SHAPE = speculation(5, 1, 6)
GREEDY = {"temperature": 0.0, "max_new_tokens": 48, "ignore_eos": True}
KINDS = {torch.bfloat16: "BF16", torch.int64: "I64", torch.bool: "BOOL"}


@pytest.fixture
def server(servers: Servers) -> Iterator[ServerProcess]:
    shared = servers.get(*SHAPE)
    DrafterClient(shared.url).push(trained(), guard=False)
    yield shared
    DrafterClient(shared.url).push(trained(), guard=False)


def state(server: ServerProcess) -> dict:
    return httpx.get(f"{server.url}/drafter", timeout=60, trust_env=False).json()


class HalfATrainer:
    """A push by process group whose trainer sends only the first half of the tensors."""

    def __init__(self, server: ServerProcess, timeout_s: int) -> None:
        self._named, self._port = tensors(), free_port()
        self._wait = timedelta(seconds=timeout_s)
        spec = [
            {"name": name, "dtype": KINDS[each.dtype], "shape": list(each.shape)}
            for name, each in self._named.items()
        ]
        group = {"address": "127.0.0.1", "port": self._port, "world_size": 2,
                 "timeout_s": timeout_s, "tensors": spec}  # fmt: skip
        self.answers: list[httpx.Response | httpx.TransportError] = []
        self._thread = threading.Thread(target=self._post, args=(server.url, group))

    def send_half(self) -> None:
        """Returns once the server's rank has the first half and waits for the next tensor."""
        self._thread.start()
        self._store = TCPStore(
            "127.0.0.1", self._port, 2, is_master=True, timeout=self._wait, wait_for_workers=False
        )
        prefixed = PrefixStore("respec-drafter", self._store)
        self._group = ProcessGroupGloo(prefixed, 0, 2, self._wait)
        for each in list(self._named.values())[: len(self._named) // 2]:
            self._group.broadcast(each.contiguous(), 0).wait()

    def die(self) -> None:
        """What a killed process leaves: closed connections."""
        del self._group, self._store

    def answer(self) -> httpx.Response | httpx.TransportError:
        self._thread.join()
        return self.answers[0]

    def _post(self, url: str, group: dict[str, object]) -> None:
        try:
            self.answers.append(
                httpx.post(
                    f"{url}/update_drafter", json={"group": group}, timeout=120, trust_env=False
                )
            )
        except httpx.TransportError as error:
            self.answers.append(error)


def test_a_trainer_that_dies_between_two_tensors(
    server: ServerProcess, prompts: list[list[int]]
) -> None:
    before = state(server)["serving"]
    expected = generate(server.url, prompts[:8], GREEDY, concurrency=4)
    trainer = HalfATrainer(server, timeout_s=30)
    trainer.send_half()
    during = generate(server.url, prompts[:8], GREEDY, concurrency=4)
    trainer.die()
    answer = trainer.answer()
    assert isinstance(answer, httpx.Response)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "staging_failed")
    assert during.token_lists == expected.token_lists
    assert during.accepted_length > 3.0
    assert state(server)["serving"] == before
    halved = {**tensors(), "norm.weight": tensors()["norm.weight"] * 0.5}
    pushed = DrafterClient(server.url).push(halved, guard=False)
    assert pushed.applied[server.url]["version"] == before + 1


def test_a_drafter_of_zeros_is_found_worse(server: ServerProcess, prompts: list[list[int]]) -> None:
    """It is finite and fits, so it is taken; the guard takes it back."""
    generate(server.url, prompts[:16], GREEDY, concurrency=8)
    zeros = {
        name: torch.zeros_like(each) if each.is_floating_point() else each
        for name, each in tensors().items()
    }
    params = {"guard": "on", "guard_verifies": "200", "wait": "true"}
    answer = httpx.post(
        f"{server.url}/update_drafter", content=save(zeros), params=params, timeout=60,
        trust_env=False,
    ).json()  # fmt: skip
    assert answer["applied"], answer
    generate(server.url, prompts[:32], GREEDY, concurrency=16)
    versions = {each["number"]: each for each in state(server)["versions"]}
    assert versions[answer["version"]]["verdict"] == "worse"
    assert versions[answer["version"] + 1]["origin"] == "guard"


def test_a_server_that_is_killed_between_stage_and_commit(
    servers: Servers, prompts: list[list[int]]
) -> None:
    """The drafter it was started with serves again, and the push can be made again."""
    flags = ["--model-path", str(demo_models()[0]), *SHAPE, "--dtype", "float32"]
    port = free_port()

    def start() -> ServerProcess:
        return ServerProcess(
            flags, command=servers.command("respec"), environ=CPU_ENVIRON, port=port
        )

    with start() as server:
        expected = generate(server.url, prompts[:8], GREEDY, concurrency=4)
        trainer = HalfATrainer(server, timeout_s=60)
        trainer.send_half()
        kill_all(server)
        assert isinstance(trainer.answer(), httpx.TransportError)
        trainer.die()
    with start() as server:
        assert state(server)["serving"] == 0
        again = generate(server.url, prompts[:8], GREEDY, concurrency=4)
        assert again.token_lists == expected.token_lists
        assert again.accepted_length == pytest.approx(expected.accepted_length)
        client = DrafterClient(server.url)
        pushed = client.push_group(tensors(), address="127.0.0.1", port=free_port(), ranks=1)
        assert (pushed["applied"], pushed["version"]) == (True, 1)


def kill_all(server: ServerProcess) -> None:
    main = http_process(server)
    family = [*main.children(recursive=True), main]
    for each in family:
        each.kill()
    psutil.wait_procs(family, timeout=10)
