"""Plain steps in a speculative server, and switching between them and speculation.

A plain step is plain decoding in every respect a client sees; the tokens do not tell of switches;
and a drafter that was left behind is as good as one that ran all the time.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from rollouts import Batch, Rollout, generate
from sampling_kinds import mixed_batch
from serving import Servers, speculation
from step_log import StepLogFile, mean_accepted

from respec_server.bundled import demo_models
from respec_server.process import ServerProcess

pytestmark = pytest.mark.server

REQUESTS = 40
GREEDY = {"temperature": 0.0, "max_new_tokens": 80, "ignore_eos": True}
LOGPROBS = {"return_logprob": True, "top_logprobs_num": 3, "token_ids_logprob": [5, 7]}
FLAGS = ["--max-running-requests", "32", "--enable-custom-logit-processor"]
# Small on purpose: prompts are prefilled in several chunks, and the running requests do not fit
# the pool, so that some are retracted and later resumed.
CRAMPED = [*FLAGS, "--chunked-prefill-size", "48", "--max-total-tokens", "2000"]
SWITCH_AT = 60  # tokens of context
Tokens = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def greedy(servers: Servers, prompts: list[list[int]]) -> tuple[Tokens, list[Rollout]]:
    """What stock SGLang decodes without speculation, and a few answers with log-probabilities."""
    url = servers.get(stock=True).url
    with_logprobs = generate(url, prompts[:4], GREEDY, concurrency=4, extra=LOGPROBS)
    tokens = generate(url, prompts[:REQUESTS], GREEDY, concurrency=8).token_lists
    return tokens, with_logprobs.rollouts


@pytest.fixture(scope="module")
def kinds(servers: Servers, prompts: list[list[int]]) -> Batch:
    """Temperatures, filters, penalties and grammars, by our sampling and with no drafter."""
    return generate(servers.get(*FLAGS).url, *_mixed(prompts), concurrency=32)


def _mixed(prompts: list[list[int]]) -> tuple[list[list[int]], list[dict[str, Any]]]:
    return mixed_batch(prompts, per_kind=2, tokens=32)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("steps")


@pytest.fixture(scope="module")
def plain_log(logs: Path) -> StepLogFile:
    return StepLogFile(logs / "plain.jsonl")


@pytest.fixture(scope="module")
def plain(servers: Servers, plain_log: StepLogFile, greedy: object, kinds: object) -> ServerProcess:
    """The answers to compare with are asked for first, so that their servers can be stopped."""
    policy = ["--respec-policy", "plain"]
    return servers.get(*speculation(3, 1, 4), *policy, *CRAMPED, *plain_log.flags)


@pytest.fixture(scope="module")
def fuzz_log(logs: Path) -> StepLogFile:
    return StepLogFile(logs / "fuzz.jsonl")


@pytest.fixture(scope="module")
def fuzz(servers: Servers, fuzz_log: StepLogFile) -> ServerProcess:
    """Another shape, or none, every few steps; prefills leave the drafter behind, and the window
    is shorter than many gaps."""
    shapes = ["--respec-configs", "3,1,4; 3,2,6", "--respec-policy", "fuzz:3"]
    tap = ["--respec-tap-window", "40", "--respec-plain-prefill", "tap"]
    return servers.get(*speculation(5, 4, 16), *shapes, *tap, *CRAMPED, *fuzz_log.flags)


def test_plain_tokens_through_chunks_retractions_and_cache_hits(
    plain: ServerProcess,
    plain_log: StepLogFile,
    prompts: list[list[int]],
    greedy: tuple[Tokens, list[Rollout]],
) -> None:
    expected, _ = greedy
    plain_log.new_steps()
    crowd = generate(plain.url, prompts[:REQUESTS], GREEDY, concurrency=16, stagger_s=0.01)
    assert crowd.token_lists == expected
    again = generate(plain.url, prompts[:16], GREEDY, concurrency=16)
    assert again.token_lists == expected[:16]
    assert sum(int(each.meta["cached_tokens"]) for each in again.rollouts) > 0
    assert "etract" in plain.log.read_text(), "the small pool made the scheduler retract"
    log = plain_log.new_steps()
    assert log.configs == {"0,1,1"}, "no step speculated"
    assert all(step["tokens_committed"] == step["batch_size"] for step in log.steps)


def test_plain_decoding_of_every_kind(
    plain: ServerProcess, prompts: list[list[int]], kinds: Batch
) -> None:
    found = generate(plain.url, *_mixed(prompts), concurrency=32)
    assert found.token_lists == kinds.token_lists
    reasons = [[r.meta["finish_reason"] for r in each.rollouts] for each in (found, kinds)]
    assert reasons[0] == reasons[1]


def test_log_probabilities_of_plain_steps(
    plain: ServerProcess, prompts: list[list[int]], greedy: tuple[Tokens, list[Rollout]]
) -> None:
    answers = generate(plain.url, prompts[:4], GREEDY, concurrency=4, extra=LOGPROBS).rollouts
    for mine, theirs in zip(answers, greedy[1], strict=True):
        for name in ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs"):
            found, expected = _flat(mine.meta[name]), _flat(theirs.meta[name])
            assert [token for _, token in found] == [token for _, token in expected]
            # float32 sums over the vocabulary keep four decimals of a log-probability and more.
            values = [[value for value, _ in each] for each in (found, expected)]
            assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_hidden_states_for_who_asks(servers: Servers, prompts: list[list[int]]) -> None:
    """Of every token, prefilled or decoded, those of the last layer, as without speculation."""
    flags = ["--respec-policy", "plain", "--enable-return-hidden-states"]
    url = servers.get(*speculation(3, 1, 4), *flags).url
    four = {"temperature": 0.0, "max_new_tokens": 4, "ignore_eos": True}
    extra = {"return_hidden_states": True}
    (answer,) = generate(url, prompts[:1], four, concurrency=1, extra=extra).rollouts
    prefill, *decoded = answer.meta["hidden_states"]
    assert len(prefill) == len(prompts[0])
    width = json.loads((demo_models()[0] / "config.json").read_text())["hidden_size"]
    assert [len(each) for each in (prefill[0], *decoded)] == [width] * 4
    assert len({tuple(each) for each in decoded}) == 3


def _flat(logprobs: list[Any]) -> list[tuple[float, int]]:
    """(log-probability, token id) of what SGLang lists per token, or per token several of."""
    return [
        (value, token)
        for each in logprobs
        for value, token, _ in (each if isinstance(each[0], list) else [each])
    ]


def test_a_known_prompt_costs_one_token_as_in_stock(
    plain: ServerProcess, fuzz: ServerProcess, prompts: list[list[int]]
) -> None:
    """A drafter's entries hold two tokens each, so that where one may run it costs two."""
    short = {"temperature": 0.0, "max_new_tokens": 4}
    for server, computed in ((plain, 1), (fuzz, 2)):
        for _ in range(2):
            (last,) = generate(server.url, prompts[-1:], short, concurrency=1).rollouts
        assert len(prompts[-1]) - int(last.meta["cached_tokens"]) == computed


def test_what_a_policy_is_told(
    plain: ServerProcess, plain_log: StepLogFile, prompts: list[list[int]]
) -> None:
    plain_log.new_steps()
    (rollout,) = generate(plain.url, prompts[:1], GREEDY, concurrency=1).rollouts
    steps = plain_log.new_steps().steps
    assert rollout.verifies == len(steps) == 80 - 1, "one token per step"
    contexts = [step["mean_context_tokens"] for step in steps]
    assert contexts == [len(prompts[0]) + i for i in range(len(steps))]
    assert all(step["requests_per_class"] == [1, 0, 0] for step in steps)
    assert steps[0]["seconds"] is None, "a prefill ran before it"
    assert all(step["seconds"] > 0 for step in steps[1:])


def test_tokens_do_not_tell_of_switches(
    fuzz: ServerProcess,
    fuzz_log: StepLogFile,
    prompts: list[list[int]],
    greedy: tuple[Tokens, list[Rollout]],
) -> None:
    """Chunked prefills, retractions, joins, and cached prefixes that the drafter never saw."""
    expected, _ = greedy
    crowd = generate(fuzz.url, prompts[:REQUESTS], GREEDY, concurrency=16, stagger_s=0.02)
    assert crowd.token_lists == expected
    again = generate(fuzz.url, prompts[:24], GREEDY, concurrency=16)
    assert again.token_lists == expected[:24]
    assert "etract" in fuzz.log.read_text(), "the small pool made the scheduler retract"
    log = fuzz_log.new_steps()
    assert log.configs == {"0,1,1", "3,1,4", "3,2,6", "5,4,16"}
    assert log.catch_up_tokens > 100
    assert sum(step["probed_requests"] for step in log.steps) > 100
    for shape in ("3,1,4", "5,4,16"):
        accepted = mean_accepted(step for step in log.verifies if step["config"] == shape)
        assert accepted > 3.0, "a drafter that is behind is accepted half as far"


def test_nor_do_tokens_of_any_kind(
    fuzz: ServerProcess, prompts: list[list[int]], kinds: Batch
) -> None:
    found = generate(fuzz.url, *_mixed(prompts), concurrency=32, stagger_s=0.005)
    assert found.token_lists == kinds.token_lists


def test_aborts_leave_the_others_alone(
    fuzz: ServerProcess, prompts: list[list[int]], greedy: tuple[Tokens, list[Rollout]]
) -> None:
    """Slots of aborted requests go to others, whose drafter must not start from their states."""
    survivors = asyncio.run(_with_aborts(fuzz.url, prompts[:REQUESTS]))
    assert survivors == {i: tokens for i, tokens in enumerate(greedy[0]) if i % 3}


async def _with_aborts(url: str, prompts: list[list[int]]) -> dict[int, tuple[int, ...]]:
    """Tokens of two thirds of the requests; every third is aborted soon after it started."""
    gate = asyncio.Semaphore(16)
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:

        async def one(index: int) -> tuple[int, ...]:
            rid = f"{index:03d}"  # SGLang aborts whatever begins with the text it is told
            async with gate:
                body = {"input_ids": prompts[index], "sampling_params": GREEDY, "rid": rid}
                running = asyncio.create_task(client.post("/generate", json=body))
                if index % 3 == 0:
                    await asyncio.sleep(0.05 + 0.01 * index)
                    await client.post("/abort_request", json={"rid": rid})
                answer = await running
            return tuple(answer.json().get("output_ids", ()))

        tokens = await asyncio.gather(*map(one, range(len(prompts))))
    return {index: each for index, each in enumerate(tokens) if index % 3}


def test_one_catch_up_is_worth_many_small_ones(
    servers: Servers, logs: Path, prompts: list[list[int]]
) -> None:
    """A window of one token makes the drafter follow token by token, as if it had never stopped.

    One extend over the whole gap must leave it in the same state: every verify after the gap
    then accepts exactly as much.
    """
    short = [each for each in prompts if len(each) < 30][:3]
    at_once = _verifies_after_a_gap(servers, logs, short, window=512)
    step_by_step = _verifies_after_a_gap(servers, logs, short, window=1)
    assert at_once == step_by_step
    first = [length for request in at_once for length in request[:8]]
    assert sum(first) / len(first) > 2.0, "warm from the first verify on"


def _verifies_after_a_gap(
    servers: Servers, logs: Path, prompts: list[list[int]], window: int
) -> list[list[int]]:
    """Tokens of each verify, for each prompt alone: plain up to a context, then speculative."""
    log = StepLogFile(logs / f"window-{window}.jsonl")
    policy = ["--respec-policy", f"above:{SWITCH_AT}", "--respec-tap-window", str(window)]
    server = servers.get(*speculation(3, 1, 4), *policy, *log.flags)
    log.new_steps()  # of the request that SGLang sends itself when it has started
    found = []
    for prompt in prompts:
        (rollout,) = generate(server.url, [prompt], GREEDY, concurrency=1).rollouts
        steps = log.new_steps()
        assert rollout.verifies == len(steps.steps)
        assert len(steps.steps) - len(steps.verifies) == SWITCH_AT - len(prompt), "the gap"
        found.append([step["tokens_committed"] for step in steps.verifies])
    return found
