"""Switching between plain and speculative decoding: the same tokens, and a drafter that is warm."""

import asyncio
from pathlib import Path

import httpx
import pytest
from rollouts import generate
from sampling_kinds import mixed_batch
from serving import Servers, speculation
from step_log import StepLogFile, mean_accepted

from respec_server.process import ServerProcess

pytestmark = pytest.mark.server

GREEDY = {"temperature": 0.0, "max_new_tokens": 80, "ignore_eos": True}
FLAGS = ["--max-running-requests", "32", "--enable-custom-logit-processor"]
CRAMPED = [*FLAGS, "--chunked-prefill-size", "48", "--max-total-tokens", "2800"]
PER_KIND, TOKENS = 2, 48
OWN = speculation(5, 4, 16)
SHAPES = ["--respec-configs", "3,1,4; 3,2,6"]
CONTEXT = 60
Tokens = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("switching")


@pytest.fixture(scope="module")
def expected(servers: Servers, prompts: list[list[int]]) -> Tokens:
    """What stock SGLang decodes without speculation."""
    return generate(servers.get(stock=True).url, prompts, GREEDY, concurrency=8).token_lists


@pytest.fixture(scope="module")
def fuzz_log(logs: Path) -> StepLogFile:
    return StepLogFile(logs / "fuzz.jsonl")


@pytest.fixture(scope="module")
def fuzz(servers: Servers, fuzz_log: StepLogFile) -> ServerProcess:
    """Another shape, or none, every few steps; prefills leave the drafter behind, and so does a
    window shorter than most gaps."""
    tap = ["--respec-tap-window", "40", "--respec-plain-prefill", "tap"]
    policy = ["--respec-policy", "fuzz:3"]
    return servers.get(*OWN, *SHAPES, *policy, *tap, *CRAMPED, *fuzz_log.flags)


def test_tokens_do_not_tell_of_the_switches(
    fuzz: ServerProcess, fuzz_log: StepLogFile, prompts: list[list[int]], expected: Tokens
) -> None:
    """Chunked prefills, retractions, joins, and cached prefixes that the drafter never saw."""
    crowd = generate(fuzz.url, prompts, GREEDY, concurrency=16, stagger_s=0.02)
    assert crowd.token_lists == expected
    again = generate(fuzz.url, prompts[:24], GREEDY, concurrency=16)
    assert again.token_lists == expected[:24]
    assert "etract" in fuzz.log.read_text(), "the small pool made the scheduler retract"
    log = fuzz_log.new_steps()
    assert log.configs == {"0,1,1", "3,1,4", "3,2,6", "5,4,16"}
    assert log.catch_up_tokens > 100
    for shape in ("3,1,4", "5,4,16"):
        accepted = mean_accepted(s for s in log.verifies if s["config"] == shape)
        assert accepted > 3.0, "a drafter that is behind is accepted half as far"


def test_nor_do_sampled_ones(
    servers: Servers, fuzz: ServerProcess, prompts: list[list[int]]
) -> None:
    """Temperatures, filters, penalties and grammars, mixed in one batch."""
    asked, sampling = mixed_batch(prompts, PER_KIND, TOKENS)
    without_drafter = servers.get(*FLAGS)
    expected, found = (
        generate(server.url, asked, sampling, concurrency=32) for server in (without_drafter, fuzz)
    )
    assert found.token_lists == expected.token_lists


def test_aborts_leave_the_others_alone(
    fuzz: ServerProcess, prompts: list[list[int]], expected: Tokens
) -> None:
    """Slots of aborted requests go to others, whose drafter must not start from their states."""
    survivors = asyncio.run(_with_aborts(fuzz.url, prompts))
    assert survivors == {i: tokens for i, tokens in enumerate(expected[:48]) if i % 3}


async def _with_aborts(url: str, prompts: list[list[int]]) -> dict[int, tuple[int, ...]]:
    """48 requests, of which every third is aborted soon after it started."""
    gate = asyncio.Semaphore(16)
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:

        async def one(index: int) -> tuple[int, ...]:
            async with gate:
                body = {"input_ids": prompts[index], "sampling_params": GREEDY, "rid": f"r{index}"}
                running = asyncio.create_task(client.post("/generate", json=body))
                if index % 3 == 0:
                    await asyncio.sleep(0.05 + 0.01 * index)
                    await client.post("/abort_request", json={"rid": f"r{index}"})
                answer = await running
            return tuple(answer.json().get("output_ids", ()))

        tokens = await asyncio.gather(*(one(index) for index in range(48)))
    return {index: each for index, each in enumerate(tokens) if index % 3}


def test_one_catch_up_is_worth_many_small_ones(
    servers: Servers, logs: Path, prompts: list[list[int]]
) -> None:
    """A window of one token makes the drafter follow token by token, as if it had never stopped.

    One extend over the whole gap must leave it in the same state: every verify after the gap
    then accepts exactly as much.
    """
    at_once = _verifies_after_a_gap(servers, logs, prompts[1:4], window=512)
    step_by_step = _verifies_after_a_gap(servers, logs, prompts[1:4], window=1)
    assert at_once == step_by_step
    first = [length for request in at_once for length in request[:8]]
    assert sum(first) / len(first) > 3.0, "warm from the first verify on"


def _verifies_after_a_gap(
    servers: Servers, logs: Path, prompts: list[list[int]], window: int
) -> list[list[int]]:
    """Tokens of each verify, for each prompt alone: plain up to a context, then speculative."""
    log = StepLogFile(logs / f"window-{window}.jsonl")
    policy = ["--respec-policy", f"above:{CONTEXT}", "--respec-tap-window", str(window)]
    server = servers.get(*speculation(3, 1, 4), *policy, *log.flags)
    found = []
    for prompt in prompts:
        (rollout,) = generate(server.url, [prompt], GREEDY, concurrency=1).rollouts
        steps = log.new_steps()
        assert rollout.verifies == len(steps.steps)
        plain = len(steps.steps) - len(steps.verifies)
        assert plain == CONTEXT - len(prompt), "the gap"
        found.append([step["tokens_committed"] for step in steps.verifies])
    return found
