"""What a server says of its steps, against what it was made to do.

The policy changes the configuration at random; the step log, one line per step, is what all
answers are held against. The pool of tokens is small, so that some requests are retracted.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from rollouts import Batch, generate
from serving import Servers, speculation
from step_log import StepLog, StepLogFile

from respec_server.cli import main
from respec_server.process import ServerProcess

pytestmark = pytest.mark.server

GREEDY = {"temperature": 0.0, "max_new_tokens": 80, "ignore_eos": True}
HOT = {"temperature": 1.0, "max_new_tokens": 80, "ignore_eos": True, "sampling_seed": 5}
PLAIN = "0,1,1"
FLAGS = [
    *("--respec-configs", "3,1,4; 3,2,6", "--respec-policy", "fuzz:3"),
    *("--respec-tap-window", "40", "--respec-plain-prefill", "tap", "--enable-metrics"),
    *("--max-running-requests", "32", "--chunked-prefill-size", "48", "--max-total-tokens", "1600"),
]


@dataclass(frozen=True)
class Driven:
    """One load, with the server's own account of it."""

    server: ServerProcess
    batch: Batch
    log: StepLog
    before: dict[str, Any]
    state: dict[str, Any]

    def sum(self, key: str) -> int:
        return sum(each.meta[key] for each in self.batch.rollouts)

    def grown(self, config: str, field: str) -> float:
        """What a figure of one configuration rose by."""
        old, new = (
            next(each[field] for each in state["configs"] if each["config"] == config)
            for state in (self.before, self.state)
        )
        return new - old


def get(server: ServerProcess, path: str) -> Any:
    return httpx.get(server.url + path, timeout=60, trust_env=False).raise_for_status().json()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> StepLogFile:
    return StepLogFile(tmp_path_factory.mktemp("seen") / "steps.jsonl")


@pytest.fixture(scope="module")
def driven(servers: Servers, log: StepLogFile, prompts: list[list[int]]) -> Driven:
    server = servers.get(*speculation(5, 4, 16), *FLAGS, *log.flags)
    log.new_steps()
    before = get(server, "/respec/state")
    sampling = [GREEDY if i % 2 else HOT for i in range(40)]
    batch = generate(server.url, prompts[:40], sampling, concurrency=24, stagger_s=0.01)
    return Driven(server, batch, log.new_steps(), before, get(server, "/respec/state"))


def test_steps_per_configuration(driven: Driven) -> None:
    assert driven.state["held"] == [PLAIN, "5,4,16", "3,1,4", "3,2,6"]
    assert driven.log.configs == set(driven.state["held"])
    for config in driven.state["held"]:
        steps = [each for each in driven.log.steps if each["config"] == config]
        assert driven.grown(config, "steps") == len(steps)
        assert driven.grown(config, "requests") == sum(each["batch_size"] for each in steps)
        assert driven.grown(config, "tokens") == sum(each["tokens_committed"] for each in steps)
    assert driven.state["steps"] - driven.before["steps"] == len(driven.log.steps)
    assert driven.state["steps_by_reason"] == {"fuzz": driven.state["steps"]}


def test_time_shares(driven: Driven) -> None:
    shares = {each["config"]: each["time_share"] for each in driven.state["configs"]}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share > 0 for share in shares.values())
    measured = [each for each in driven.log.steps if each["seconds"] is not None]
    for config in shares:
        known = [each["seconds"] for each in measured if each["config"] == config]
        assert driven.grown(config, "measured_steps") == len(known)
        assert driven.grown(config, "measured_s") == pytest.approx(sum(known))


def test_switches_and_catch_ups(driven: Driven) -> None:
    pairs = [(a["config"], b["config"]) for a, b in itertools.pairwise(driven.log.steps)]
    changed = [pair for pair in pairs if pair[0] != pair[1]]
    first = driven.state["switches"] - driven.before["switches"] - len(changed)
    assert first in (0, 1), "the first step may differ from the one before the load"
    newest = [(each["before"], each["after"]) for each in get(driven.server, "/respec/plan")[
        "last_switches"]]  # fmt: skip
    assert newest[: len(changed)] == changed[::-1][: len(newest)]
    by_reason = driven.state["switches_by_reason"]
    assert sum(each["switches"] for each in by_reason) == driven.state["switches"]
    caught_up = driven.state["catch_up_tokens"] - driven.before["catch_up_tokens"]
    assert caught_up == driven.log.catch_up_tokens > 0
    assert 0 < driven.state["catch_ups"] <= driven.state["steps"]
    guesses = sum(each["probed_requests"] for each in driven.log.steps)
    assert driven.state["guesses"] - driven.before["guesses"] == guesses > 0


def test_every_request_tells_its_plain_steps_apart(driven: Driven) -> None:
    """The pool was too small, so some of them were retracted and came back."""
    assert sum(each.meta["num_retractions"] for each in driven.batch.rollouts) > 0
    plain = [each for each in driven.log.steps if each["config"] == PLAIN]
    verifies = driven.log.verifies
    assert driven.sum("respec_plain_steps") == sum(each["batch_size"] for each in plain)
    assert driven.sum("respec_verify_steps") == sum(each["batch_size"] for each in verifies)
    committed = sum(each["tokens_committed"] for each in verifies)
    assert driven.sum("respec_verify_tokens") == committed
    for rollout in driven.batch.rollouts:
        meta = rollout.meta
        steps = meta["respec_plain_steps"], meta["respec_verify_steps"]
        assert sum(steps) == meta["spec_verify_ct"]
        assert min(steps) >= 0
        # Each prefill gives one token; the last verify may commit more than the limit left.
        prefills = 1 + meta["num_retractions"]
        made = prefills + meta["respec_plain_steps"] + meta["respec_verify_tokens"]
        assert 0 <= made - meta["completion_tokens"] <= 5


def test_depths(driven: Driven) -> None:
    depths = driven.state["depths"]
    assert [each["depth"] for each in depths] == [1, 2, 3, 4, 5]
    assert depths[0]["offered"] == driven.state["configs"][1]["requests"] + sum(
        each["requests"] for each in driven.state["configs"][2:]
    )
    for shallow, deep in itertools.pairwise(depths):
        assert deep["offered"] <= shallow["accepted"]
    assert all(0.3 < each["acceptance"] <= 1.0 for each in depths)


def test_prometheus_says_the_same(driven: Driven) -> None:
    text = httpx.get(f"{driven.server.url}/metrics", timeout=60, trust_env=False).text
    found: dict[tuple[str, str], float] = {}
    pattern = r'^sglang_respec:(\w+?)(?:\{(\w+)="([^"]*)"\})? (\S+)$'
    for name, _, label, value in re.findall(pattern, text, flags=re.MULTILINE):
        found[name, label] = float(value)
    for each in driven.state["configs"]:
        config = each["config"]
        assert found["steps_total", config] == each["steps"]
        assert found["step_requests_total", config] == each["requests"]
        assert found["step_tokens_total", config] == each["tokens"]
        assert found["decode_seconds_total", config] == pytest.approx(each["busy_s"])
        assert found["time_share", config] == pytest.approx(each["time_share"])
    for each in driven.state["depths"]:
        assert found["depth_offered_total", str(each["depth"])] == each["offered"]
        assert found["depth_accepted_total", str(each["depth"])] == each["accepted"]
    assert found["steps_by_reason_total", "fuzz"] == driven.state["steps"]
    assert found["catch_ups_total", ""] == driven.state["catch_ups"]
    assert found["tap_ring_bytes", ""] == driven.state["tap"]["ring_bytes"] > 0
    switches = re.findall(r"^sglang_respec:switches_total\{.*\} (\S+)$", text, flags=re.MULTILINE)
    assert sum(map(float, switches)) == driven.state["switches"]


def test_the_plan_of_a_policy_without_times(driven: Driven) -> None:
    plan = get(driven.server, "/respec/plan")
    assert (plan["policy"], plan["setting"], plan["reason"]) == ("fuzz", "fuzz:3", "fuzz")
    assert plan["rows"] == plan["acceptance"] == []
    assert plan["current"] in driven.state["held"]
    assert plan["measured"] == driven.state["configs"]


def test_a_stream_ends_with_its_counts(driven: Driven) -> None:
    body = {"text": "1 + 2 =", "stream": True, "sampling_params": GREEDY}
    with httpx.stream(
        "POST", f"{driven.server.url}/generate", json=body, timeout=60, trust_env=False
    ) as answer:
        lines = [each.removeprefix("data: ") for each in answer.iter_lines() if each]
    first, last = json.loads(lines[0])["meta_info"], json.loads(lines[-2])["meta_info"]
    assert "respec_plain_steps" not in first
    assert last["respec_plain_steps"] + last["respec_verify_steps"] == last["spec_verify_ct"]


def test_the_status_command(driven: Driven, capsys: pytest.CaptureFixture[str]) -> None:
    url = driven.server.url
    assert main(["status", "--url", url, "--watch", "0.01", "--count", "2"]) == 0
    text = capsys.readouterr().out
    assert text.count("fuzz:3") == 2
    for config in ("plain", "5,4,16", "3,1,4", "3,2,6"):
        assert config in text


def test_a_policy_with_step_times(
    servers: Servers, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("profiles")
    flags = ["--respec-policy", "auto", "--respec-configs", "1,1,2", "--max-running-requests", "16"]
    flags += ["--respec-profile-dir", str(folder), "--respec-profile-seconds", "2"]
    server = servers.get(*speculation(3, 1, 4), *flags)
    generate(server.url, prompts[:8], GREEDY, concurrency=8)
    plan, state = get(server, "/respec/plan"), get(server, "/respec/state")
    assert plan["policy"] == plan["setting"] == "auto"
    assert state["profile"]["kind"] == "measured"
    assert state["guesses"] > 0, "of the first step"
    assert state["decision_us"]["p50"] > 0
    for row in plan["rows"]:
        rates = {each["config"]: each["tokens_per_s"] for each in row["configs"]}
        assert set(rates) == set(state["held"])
        assert row["best"] == max(rates, key=rates.__getitem__)
    (greedy, *_) = plan["acceptance"]
    assert greedy["temperature_class"] == "greedy"
    assert [each["depth"] for each in greedy["depths"]] == [1, 2, 3]
    for each in state["configs"]:
        assert each["predicted_steps"] == each["measured_steps"]
        assert (each["predicted_step_s"] is None) == (each["measured_steps"] == 0)
    assert state["steps_by_reason"]["first"] == 4


def test_sglangs_own_adaptive_mode(
    servers: Servers, prompts: list[list[int]], tmp_path: Path
) -> None:
    """Its 0 steps among the others: a crowd gets none, single requests get some."""
    rule = tmp_path / "rule.json"
    rule.write_text('{"1": {"candidate_steps": [1, 3]}, "4": {"candidate_steps": [0]}}')
    flags = ["--speculative-adaptive", "--speculative-adaptive-config", str(rule)]
    server = servers.get(*speculation(3, 1, 4), *flags, "--respec-policy", "sglang-adaptive")
    batch = generate(server.url, prompts[:8], GREEDY, concurrency=8)
    alone = generate(server.url, prompts[:2], GREEDY, concurrency=1)
    assert alone.token_lists == batch.token_lists[:2]
    state = get(server, "/respec/state")
    ran = {each["config"] for each in state["configs"] if each["steps"]}
    assert len(ran) > 1
    assert PLAIN in ran
    assert sum(each["time_share"] for each in state["configs"]) == pytest.approx(1.0)
    assert sum(each["requests"] for each in state["configs"]) >= sum(
        each.verifies for each in batch.rollouts
    )
    assert get(server, "/respec/plan")["current"] in {e["config"] for e in state["configs"]}
    for each in batch.rollouts:
        steps = each.meta["respec_plain_steps"] + each.meta["respec_verify_steps"]
        assert steps == each.verifies > 0


def test_a_server_with_no_drafter(servers: Servers) -> None:
    url = servers.get().url
    for path in ("/respec/plan", "/respec/state"):
        answer = httpx.get(url + path, timeout=60, trust_env=False)
        assert answer.status_code == 404
        assert "--drafter-path" in answer.json()["error"]["message"]
    assert main(["status", "--url", url, "--watch", "0.01", "--count", "1"]) == 0
