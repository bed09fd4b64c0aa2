"""A server that collects: what arrives is what the target computed and what was sent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from collected import KEY, WAIT_S, Deviation, Learner
from drafter_files import tensors
from rollouts import Batch, Rollout, generate
from safetensors.torch import save_file
from serving import Servers, speculation
from transformers import AutoModelForCausalLM

from respec_server.bundled import demo_models
from respec_server.process import ServerProcess
from sglang_respec.learner.samples import RolloutSample

pytestmark = pytest.mark.server

LISTED, TOKENS = 32, 48
# Small on purpose: prompts are prefilled in chunks, and the running requests do not fit the pool.
CRAMPED = ["--chunked-prefill-size", "48", "--max-total-tokens", "1100"]
POLICIES = {
    "plain": ["--respec-policy", "plain"],
    "tree": ["--respec-policy", "always:5,4,16"],
    "shapes by turns": ["--respec-policy", "fuzz:5", "--respec-tap-window", "40"],
}


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learner]:
    receiver = Learner(tmp_path_factory.mktemp("spool"))
    receiver.open()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def target() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_models()[0], dtype=torch.float32)


@pytest.fixture(scope="module")
def collecting(servers: Servers, learner: Learner) -> Callable[[str], ServerProcess]:
    """A server that sends its rollouts to the learner, under one of the policies."""
    started: set[str] = set()

    def start(policy: str) -> ServerProcess:
        samples = [
            *("--respec-samples-to", f"http://127.0.0.1:{learner.port}"),
            *("--respec-samples-key", KEY),
            *("--respec-samples-top-k", str(LISTED)),
        ]
        shapes = [*speculation(5, 4, 16), "--respec-configs", "3,1,4"]
        flags = [*samples, *POLICIES[policy], *CRAMPED, "--enable-metrics"]
        server = servers.get(*shapes, *flags)
        if policy not in started:
            learner.rollouts(1)  # SGLang's own request, when it has started
        started.add(policy)
        return server

    return start


@pytest.fixture
def server(collecting: Callable[[str], ServerProcess]) -> ServerProcess:
    return collecting("shapes by turns")


def sampled(count: int, first_seed: int = 900) -> list[dict[str, Any]]:
    return [
        {
            "temperature": (0.0, 0.7, 1.0, 1.3)[i % 4],
            "max_new_tokens": TOKENS,
            "sampling_seed": first_seed + i,
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_arrives_is_what_was_computed(
    collecting: Callable[[str], ServerProcess],
    learner: Learner,
    target: Any,
    prompts: list[list[int]],
    policy: str,
) -> None:
    """Through chunked prefills, retractions and cached prefixes."""
    server, crowd = collecting(policy), prompts[:24]
    served = generate(server.url, crowd, sampled(24), concurrency=12)
    found = learner.rollouts(24)
    deviation = Deviation(target)
    for prompt, params, rollout in zip(crowd, sampled(24), served.rollouts, strict=True):
        mine = found[str(rollout.meta["id"])]
        _is_what_was_sent(mine, prompt, params, rollout)
        deviation.add(mine)
    assert any(each.first_aux > 0 for each in found.values()), "some prefixes were cached"
    assert "etract" in server.log.read_text(), "the small pool made the scheduler retract"
    # Two ways through float32, single tokens here and whole sequences there. Each of ten layers
    # adds sums of some hundred products, whose relative errors of 2^-24 add up at random: near
    # 2^-24 * sqrt(10 * 200). A log-probability is a difference of logits of 10 to 30 divided by
    # temperatures down to 0.7.
    assert deviation.aux < 2e-5
    assert deviation.logprobs < 5e-4
    assert deviation.tail < 5e-5
    assert deviation.unlisted < 5e-4, "the likeliest are listed, up to ties"


def _is_what_was_sent(
    mine: RolloutSample, prompt: list[int], params: dict[str, Any], rollout: Rollout
) -> None:
    assert mine.tokens.tolist() == [*prompt, *rollout.output_ids]
    assert mine.prompt_tokens == len(prompt)
    assert mine.seed == params["sampling_seed"] == rollout.meta["sampling_seed"]
    assert mine.temperature == pytest.approx(params["temperature"])
    assert (mine.drafter_version, mine.policy_version) == (0, 0)
    assert mine.top_ids.shape[1] == LISTED


def test_each_of_n_samples_arrives_under_its_own_id(
    server: ServerProcess, learner: Learner, prompts: list[list[int]]
) -> None:
    params = {"n": 3, "temperature": 1.0, "max_new_tokens": 8}
    native = generate(server.url, prompts[:1], params, concurrency=1)
    found = learner.rollouts(3)
    for rollout in native.rollouts:
        mine = found[str(rollout.meta["id"])]
        assert mine.tokens[mine.prompt_tokens :].tolist() == list(rollout.output_ids)
    body = {
        "messages": [{"role": "user", "content": "What is 1 + 2?"}], "n": 3, "max_tokens": 8,
        "return_meta_info": True, "model": "demo",
    }  # fmt: skip
    answer = _post(server, "/v1/chat/completions", body).json()
    ids = {choice["meta_info"]["id"] for choice in answer["choices"]}
    assert len(ids) == 3
    assert learner.rollouts(3).keys() == ids


def _post(server: ServerProcess, path: str, body: Any) -> httpx.Response:
    answer = httpx.post(server.url + path, json=body, timeout=120, trust_env=False)
    answer.raise_for_status()
    return answer


def test_what_is_not_the_targets_own_is_left_out(
    server: ServerProcess, learner: Learner, prompts: list[list[int]]
) -> None:
    """And a request that was aborted, or that nobody waited for."""
    for params in (
        {"frequency_penalty": 0.5},
        {"min_new_tokens": 4},
        {"regex": "[0-9]+"},
        {"logit_bias": {"5": 1.0}},
    ):
        generate(server.url, prompts[:1], {"max_new_tokens": 8, **params}, concurrency=1)
    running = threading.Thread(
        target=generate,
        args=(server.url, prompts[:1], {"max_new_tokens": 400, "ignore_eos": True}),
        kwargs={"concurrency": 1, "extra": {"rid": "to-abort"}},
    )
    running.start()
    time.sleep(0.3)
    _post(server, "/abort_request", {"rid": "to-abort"})
    running.join()
    extra = {"rid": "the-last"}
    generate(server.url, prompts[:1], {"max_new_tokens": 8}, concurrency=1, extra=extra)
    assert learner.rollouts(1).keys() == {"the-last"}


def test_nobody_waits_for_a_receiver(
    server: ServerProcess, learner: Learner, prompts: list[list[int]]
) -> None:
    """One that takes connections and never answers, then none, then the learner again."""
    crowd = prompts[:16]
    before = generate(server.url, crowd, sampled(16), concurrency=8)
    learner.rollouts(16)
    learner.close()
    with socket.create_server(("127.0.0.1", learner.port)):
        hung = generate(server.url, crowd, sampled(16), concurrency=8)
    gone = generate(server.url, crowd, sampled(16), concurrency=8)
    assert before.token_lists == hung.token_lists == gone.token_lists
    learner.open()
    found = learner.rollouts(32)
    assert found.keys() == {str(each.meta["id"]) for b in (hung, gone) for each in b.rollouts}


def test_versions_and_counters(
    server: ServerProcess, learner: Learner, prompts: list[list[int]]
) -> None:
    content = (demo_models()[1] / "model.safetensors").read_bytes()
    httpx.post(
        f"{server.url}/update_drafter", content=content, params={"wait": "true", "guard": "off"},
        timeout=60, trust_env=False,
    ).raise_for_status()  # fmt: skip
    for _ in range(2):
        _post(server, "/update_weights_from_disk", {"model_path": str(demo_models()[0])})
    generate(server.url, prompts[:2], {"max_new_tokens": 8}, concurrency=2)
    versions = {(s.drafter_version, s.policy_version) for s in learner.rollouts(2).values()}
    assert versions == {(1, 2)}
    text = httpx.get(f"{server.url}/metrics", timeout=60, trust_env=False).text
    counts = {
        line.split("}")[0].split('what="')[1].rstrip('"'): float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("sglang_respec:rollouts_total{")
    }
    assert counts["sent"] == counts["collected"] > 50
    assert counts["unfinished"] >= 1
    assert "incomplete" not in counts
    assert "refused" not in counts


def test_a_learner_learns_from_a_server(
    collecting: Callable[[str], ServerProcess],
    learner: Learner,
    prompts: list[list[int]],
    tmp_path: Path,
) -> None:
    """Rollouts to `respec learn`, its drafter back to the server, which then accepts more."""
    server = collecting("tree")  # one shape, so that accepted lengths can be compared
    folder = _damaged_drafter(tmp_path / "damaged")
    _push(server, folder)
    damaged = _serving(server)
    learner.close()
    command = [
        *(sys.executable, "-m", "respec_server", "learn", "--server", server.url),
        *("--model-path", str(demo_models()[0]), "--drafter-path", str(folder)),
        *("--port", str(learner.port), "--admin-key", KEY, "--output", str(tmp_path / "out")),
        *("--steps", "5", "--learning-rate", "1e-3", "--warmup-steps", "2", "--reuse", "20"),
        *("--least-tokens", "1000", "--held-out-share", "4", "--least-held-out", "2"),
        *("--publish", "interval", "--interval", "10", "--judge-every", "10"),
    ]
    with (tmp_path / "log").open("wb") as log:
        learning = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
    try:
        first = _batch(server, prompts, 0)
        deadline, round_ = time.monotonic() + 5 * WAIT_S, 1
        while _serving(server) == damaged and time.monotonic() < deadline:
            _batch(server, prompts, round_)
            round_ += 1
        assert _serving(server) > damaged, (tmp_path / "log").read_text()
        last = _batch(server, prompts, 0)
        assert last.token_lists == first.token_lists
        assert last.accepted_length > first.accepted_length + 0.1
    finally:
        learning.send_signal(signal.SIGTERM)
        assert learning.wait(WAIT_S) == 0
        learner.open()
    events = [
        json.loads(line)["event"]
        for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()
    ]
    assert "published" in events


def _batch(server: ServerProcess, prompts: list[list[int]], round_: int) -> Batch:
    return generate(server.url, prompts[:32], sampled(32, 5000 + 100 * round_), concurrency=12)


def _push(server: ServerProcess, folder: Path) -> None:
    httpx.post(
        f"{server.url}/update_drafter", content=(folder / "model.safetensors").read_bytes(),
        params={"wait": "true", "guard": "off"}, timeout=60, trust_env=False,
    ).raise_for_status()  # fmt: skip


def _serving(server: ServerProcess) -> int:
    answer = httpx.get(f"{server.url}/drafter", timeout=60, trust_env=False).json()
    return int(answer["serving"])


def _damaged_drafter(folder: Path) -> Path:
    """The bundled drafter with noise on its head: something to learn in a few updates."""
    changed = tensors()
    head = changed["lm_head.weight"].float()
    noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(3)) * head.std()
    changed["lm_head.weight"] = (head + noise).to(changed["lm_head.weight"].dtype)
    folder.mkdir()
    (folder / "config.json").write_bytes((demo_models()[1] / "config.json").read_bytes())
    save_file(changed, folder / "model.safetensors")
    return folder
