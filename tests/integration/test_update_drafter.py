"""Drafters are swapped on a real server under load, and no response shows it."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from drafter_files import degraded, specforge, speculators, tensors, trained
from rollouts import Batch, generate
from serving import Servers, speculation

from respec_server.cli import main
from respec_server.client import DrafterClient, PushFailed
from respec_server.process import ServerProcess, free_port

pytestmark = pytest.mark.server

SHAPE = speculation(5, 1, 6)
GREEDY = {"temperature": 0.0, "max_new_tokens": 64, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The --respec-drafter-dir of the server."""
    return tmp_path_factory.mktemp("drafters")


@pytest.fixture(scope="module")
def shared(servers: Servers, folder: Path, tmp_path_factory: pytest.TempPathFactory):
    settings = tmp_path_factory.mktemp("settings") / "respec.toml"
    settings.write_text(
        f'portable_threads = 1\npolicy = "always"\ndrafter_dir = "{folder}"\n', encoding="utf-8"
    )
    environ = {"SGLANG_RESPEC_CONFIG": str(settings)}
    return servers.get(*SHAPE, "--enable-metrics", environ=environ)


@pytest.fixture
def server(shared: ServerProcess) -> Iterator[ServerProcess]:
    """The server with the trained drafter, and with it again afterwards."""
    push(shared, trained())
    yield shared
    push(shared, trained())


def push(server: ServerProcess, content: bytes, guard: str = "off", **params: object) -> dict:
    answer = httpx.post(
        f"{server.url}/update_drafter", content=content, timeout=60, trust_env=False,
        params={"guard": guard, "wait": "true", **params},
    )  # fmt: skip
    return {"http": answer.status_code, **answer.json()}


def get(server: ServerProcess, path: str) -> httpx.Response:
    return httpx.get(server.url + path, timeout=60, trust_env=False)


def state(server: ServerProcess) -> dict:
    return get(server, "/drafter").json()


class Meanwhile:
    """Runs something again and again in a thread, as long as the block under it lasts."""

    def __init__(self, *things: Callable[[], object]) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in things]

    def _run(self, thing: Callable[[], object]) -> None:
        while not self._stop.is_set():
            thing()

    def __enter__(self) -> None:
        for each in self._threads:
            each.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()


def spans(batch: Batch) -> list[list[dict]]:
    return [each.meta["drafter_versions"] for each in batch.rollouts]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_swaps_under_load_change_no_token(
    server: ServerProcess, prompts: list[list[int]], temperature: float
) -> None:
    sampling = [{**GREEDY, "temperature": temperature, "sampling_seed": seed} for seed in range(64)]
    before = generate(server.url, prompts, sampling, concurrency=16)
    files = itertools.cycle([degraded(0), trained(), degraded(1), trained()])
    answers: list[dict] = []
    probes: set[int] = set()

    def probe() -> None:
        probes.update(get(server, each).status_code for each in ("/health", "/ready", "/metrics"))

    with Meanwhile(lambda: answers.append(push(server, next(files))), probe):
        during = generate(server.url, prompts, sampling, concurrency=16)

    assert during.token_lists == before.token_lists
    assert {each.meta["finish_reason"]["type"] for each in during.rollouts} == {"length"}
    assert {each["http"] for each in answers} == {200}
    assert all(each["applied"] for each in answers)
    assert len(answers) >= 5
    assert probes == {200}

    assert all(len(each) == 1 for each in spans(before)), "no swap, one version"
    assert max(len(each) for each in spans(during)) > 1, "some request lived through a swap"
    for rollout, each in zip(during.rollouts, spans(during), strict=True):
        edges = [0, *(span["end"] for span in each)]
        assert [span["start"] for span in each] == edges[:-1]
        assert edges[-1] == len(rollout.output_ids)
        numbers = [span["version"] for span in each]
        assert numbers == sorted(set(numbers))


def test_acceptance_follows_the_drafter(server: ServerProcess, prompts: list[list[int]]) -> None:
    def measure() -> Batch:
        return generate(server.url, prompts[:16], GREEDY, concurrency=8)

    good = measure()
    assert push(server, degraded())["applied"]
    bad = measure()
    assert bad.token_lists == good.token_lists
    assert bad.accepted_length < 1.5 < 3.0 < good.accepted_length
    versions = {each["number"]: each for each in state(server)["versions"]}
    serving = versions[state(server)["serving"]]
    assert serving["accepted_length"] == pytest.approx(bad.accepted_length, rel=0.05)

    answer = httpx.post(f"{server.url}/drafter/rollback", timeout=60, trust_env=False).json()
    assert answer["restores"] == serving["number"] - 1
    httpx.post(f"{server.url}/flush_cache", timeout=60, trust_env=False)
    again = measure()
    assert again.token_lists == good.token_lists
    # The drafter's own KV of shared prefixes may differ; nothing else does.
    assert again.accepted_length == pytest.approx(good.accepted_length, rel=0.05)


def test_the_guard_takes_a_worse_drafter_back(
    server: ServerProcess, prompts: list[list[int]]
) -> None:
    generate(server.url, prompts[:16], GREEDY, concurrency=8)
    pushed = push(server, degraded(), guard="on", guard_verifies=200)
    assert pushed["guard"]["verdict"] == "watching"
    generate(server.url, prompts[:32], GREEDY, concurrency=16)
    final = state(server)
    assert final["serving"] == pushed["version"] + 1
    by_number = {each["number"]: each for each in final["versions"]}
    assert by_number[pushed["version"]]["verdict"] == "worse"
    assert by_number[final["serving"]]["origin"] == "guard"
    assert by_number[final["serving"]]["restores"] == pushed["previous"]
    after = generate(server.url, prompts[:16], GREEDY, concurrency=8)
    assert after.accepted_length > 3.0


@pytest.mark.parametrize("make", [specforge, speculators], ids=["SpecForge", "speculators"])
def test_layouts_of_other_tools(server: ServerProcess, prompts: list[list[int]], make) -> None:
    push(server, degraded())
    answer = push(server, make())
    assert answer["applied"], answer
    if make is speculators:
        assert set(answer["ignored"]) == {
            "embed_tokens.weight", "verifier_lm_head.weight", "verifier_norm.weight",
        }  # fmt: skip
    batch = generate(server.url, prompts[:8], GREEDY, concurrency=8)
    assert batch.accepted_length > 3.0


def test_refusals_leave_serving_alone(server: ServerProcess, prompts: list[list[int]]) -> None:
    from safetensors.torch import save

    expected = generate(server.url, prompts[:8], GREEDY, concurrency=8)
    version = state(server)["serving"]
    whole, named = trained(), tensors()
    wrong = {**named, "norm.weight": named["norm.weight"][:-1].clone()}
    nan = {**named, "norm.weight": named["norm.weight"] * float("nan")}
    missing = {name: each for name, each in named.items() if name != "fc.weight"}
    cases = {
        "cut": (whole[:-1], 400), "nothing": (b"", 400), "pickle": (b"\x80\x04\x95" * 99, 400),
        "shape": (save(wrong), 422), "nan": (save(nan), 422), "missing": (save(missing), 422),
    }  # fmt: skip
    for name, (content, status) in cases.items():
        answer = push(server, content)
        assert answer["http"] == status, (name, answer)
        assert answer["error"]["message"], name
    assert state(server)["serving"] == version
    after = generate(server.url, prompts[:8], GREEDY, concurrency=8)
    assert after.token_lists == expected.token_lists
    assert after.accepted_length > 3.0


def test_a_push_over_a_process_group(server: ServerProcess, prompts: list[list[int]]) -> None:
    push(server, degraded())
    client = DrafterClient(server.url)
    answer = client.push_group(tensors(), address="127.0.0.1", port=free_port(), ranks=1)
    assert answer["applied"]
    batch = generate(server.url, prompts[:8], GREEDY, concurrency=8)
    assert batch.accepted_length > 3.0
    with pytest.raises(PushFailed, match="needs 2"):
        client.push_group(tensors(), address="127.0.0.1", port=free_port(), ranks=3, timeout_s=5)


def test_a_trainer_that_never_comes_to_the_group(server: ServerProcess) -> None:
    version = state(server)["serving"]
    group = {
        "address": "127.0.0.1", "port": free_port(), "world_size": 2, "timeout_s": 2,
        "tensors": [
            {"name": name, "dtype": {"bfloat16": "BF16", "int64": "I64", "bool": "BOOL"}[
                str(each.dtype).removeprefix("torch.")], "shape": list(each.shape)}
            for name, each in tensors().items()
        ],
    }  # fmt: skip
    answer = httpx.post(
        f"{server.url}/update_drafter", json={"group": group}, timeout=60, trust_env=False
    )
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "staging_failed"
    assert state(server)["serving"] == version


def test_clients(server: ServerProcess, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = DrafterClient(server.url)
    named = tensors()
    named["norm.weight"] = named["norm.weight"] * 0.5
    assert client.push(named, label="halved").applied[server.url]["applied"]
    (folder / "d.safetensors").write_bytes(trained())
    assert client.push_path("d.safetensors").applied[server.url]["applied"]
    assert client.rollback().applied[server.url]["restores"]

    assert main(["push", str(folder / "d.safetensors"), "--url", server.url, "--label", "x"]) == 0
    assert "applied" in capsys.readouterr().out
    (folder / "bad.safetensors").write_bytes(b"no")
    assert main(["push", str(folder / "bad.safetensors"), "--url", server.url]) == 1
    assert "400" in capsys.readouterr().err
    assert main(["push", "--server-path", "d.safetensors", "--url", server.url]) == 0
    with pytest.raises(PushFailed) as failure:
        DrafterClient([server.url, "http://127.0.0.1:9"], retries=0).push(trained())
    assert set(failure.value.report.applied) == {server.url}


def test_a_stream_ends_with_its_versions(server: ServerProcess) -> None:
    body = {"text": "1 + 2 =", "stream": True, "sampling_params": GREEDY}
    with httpx.stream(
        "POST", f"{server.url}/generate", json=body, timeout=60, trust_env=False
    ) as answer:
        lines = [each.removeprefix("data: ") for each in answer.iter_lines() if each]
    last = json.loads(lines[-2])
    (span,) = last["meta_info"]["drafter_versions"]
    assert (span["start"], span["end"]) == (0, 64)


def test_prometheus(server: ServerProcess, prompts: list[list[int]]) -> None:
    generate(server.url, prompts[:16], GREEDY, concurrency=8)
    text = get(server, "/metrics").text
    for name in (
        'sglang_respec:drafter_pushes_total{result="applied"}',
        'sglang_respec:drafter_push_seconds_count{phase="commit"}',
        "sglang_respec:drafter_rollbacks_total",
        "sglang_respec:drafter_verifies_total",
        "sglang_respec:drafter_accepted_drafts_total",
    ):
        assert name in text, name
    serving = next(line for line in text.splitlines() if "drafter_version{" in line
                   or line.startswith("sglang_respec:drafter_version "))  # fmt: skip
    assert float(serving.split()[-1]) == state(server)["serving"]
