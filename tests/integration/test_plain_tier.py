"""Plain decoding inside a speculative server is plain decoding, in every respect a client sees."""

from typing import Any

import pytest
from rollouts import generate
from sampling_kinds import mixed_batch
from serving import Servers, speculation
from step_log import StepLogFile

from respec_server.process import ServerProcess

pytestmark = pytest.mark.server

GREEDY = {"temperature": 0.0, "max_new_tokens": 96, "ignore_eos": True}
FLAGS = ["--max-running-requests", "32", "--enable-custom-logit-processor"]
# Small on purpose: prompts are prefilled in several chunks, and the running requests do not fit
# the pool, so that some are retracted and later resumed.
CRAMPED = [*FLAGS, "--chunked-prefill-size", "48", "--max-total-tokens", "2000"]
PER_KIND, TOKENS = 2, 48


@pytest.fixture(scope="module")
def stock(servers: Servers) -> ServerProcess:
    return servers.get(stock=True)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> StepLogFile:
    return StepLogFile(tmp_path_factory.mktemp("plain") / "steps.jsonl")


@pytest.fixture(scope="module")
def plain(servers: Servers, log: StepLogFile) -> ServerProcess:
    return servers.get(*speculation(3, 1, 4), "--respec-policy", "plain", *CRAMPED, *log.flags)


def test_every_kind_of_request(
    servers: Servers, plain: ServerProcess, prompts: list[list[int]]
) -> None:
    """Temperatures, filters, penalties, grammars and stops, mixed in one batch."""
    asked, sampling = mixed_batch(prompts, PER_KIND, TOKENS)
    without_drafter = servers.get(*FLAGS)  # its tokens hang on no batch, so any concurrency does
    expected, found = (
        generate(server.url, asked, sampling, concurrency=32) for server in (without_drafter, plain)
    )
    assert found.token_lists == expected.token_lists
    reasons = [[r.meta["finish_reason"] for r in each.rollouts] for each in (found, expected)]
    assert reasons[0] == reasons[1]


def test_greedy_tokens_through_chunks_retractions_and_cache_hits(
    stock: ServerProcess, plain: ServerProcess, log: StepLogFile, prompts: list[list[int]]
) -> None:
    expected = generate(stock.url, prompts[:40], GREEDY, concurrency=8).token_lists
    log.new_steps()
    crowd = generate(plain.url, prompts[:40], GREEDY, concurrency=16, stagger_s=0.01)
    assert crowd.token_lists == expected
    again = generate(plain.url, prompts[:16], GREEDY, concurrency=16)
    assert again.token_lists == expected[:16]
    assert sum(int(each.meta["cached_tokens"]) for each in again.rollouts) > 0
    assert "etract" in plain.log.read_text(), "the small pool made the scheduler retract"
    steps = log.new_steps()
    assert steps.configs == {"0,1,1"}, "no step speculated"
    assert all(s["tokens_committed"] == s["batch_size"] for s in steps.steps)


def test_log_probabilities(
    stock: ServerProcess, plain: ServerProcess, prompts: list[list[int]]
) -> None:
    asked = {"return_logprob": True, "top_logprobs_num": 3, "token_ids_logprob": [5, 7]}
    answers = [
        generate(server.url, prompts[:4], GREEDY, concurrency=4, extra=asked).rollouts
        for server in (stock, plain)
    ]
    for mine, theirs in zip(*answers, strict=True):
        for name in ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs"):
            found, expected = _flat(mine.meta[name]), _flat(theirs.meta[name])
            assert [token for _, token in found] == [token for _, token in expected]
            # float32 sums over the vocabulary keep four decimals of a log-probability and more.
            values = [[value for value, _ in each] for each in (found, expected)]
            assert values[0] == pytest.approx(values[1], abs=1e-4)


def _flat(logprobs: list[Any]) -> list[tuple[float, int]]:
    """(log-probability, token id) of what SGLang lists per token, or per token several of."""
    return [
        (value, token)
        for each in logprobs
        for value, token, _ in (each if isinstance(each[0], list) else [each])
    ]


def test_what_a_policy_is_told(
    plain: ServerProcess, prompts: list[list[int]], log: StepLogFile
) -> None:
    log.new_steps()
    (rollout,) = generate(plain.url, prompts[:1], GREEDY, concurrency=1).rollouts
    steps = log.new_steps().steps
    assert rollout.verifies == len(steps) == 96 - 1, "one token per step"
    contexts = [step["mean_context_tokens"] for step in steps]
    assert contexts == [len(prompts[0]) + i for i in range(len(steps))]
    assert all(step["requests_per_class"] == [1, 0, 0] for step in steps)
    assert steps[0]["seconds"] is None, "a prefill ran before it"
    assert all(step["seconds"] > 0 for step in steps[1:])
