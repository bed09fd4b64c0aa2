"""Greedy outputs of every speculative configuration are stock plain decoding's, token for token."""

import pytest
from rollouts import Batch, generate
from serving import Servers, speculation

pytestmark = pytest.mark.server

GREEDY = {"temperature": 0.0, "max_new_tokens": 128, "ignore_eos": True}
# Small on purpose: prompts are prefilled in several chunks, and sixteen running requests do
# not fit the pool, so that some are retracted and later resumed.
CRAMPED = ["--chunked-prefill-size", "48", "--max-total-tokens", "2200"]


@pytest.fixture(scope="module")
def plain(servers: Servers, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    """What stock SGLang decodes without speculation, eight requests at a time."""
    server = servers.get(stock=True)
    return generate(server.url, prompts, GREEDY, concurrency=8).token_lists


@pytest.mark.parametrize("shape", [(3, 1, 4), (5, 1, 6), (4, 3, 8), (3, 4, 16)], ids=str)
def test_tokens_are_those_of_plain_decoding(
    shape: tuple[int, int, int],
    servers: Servers,
    prompts: list[list[int]],
    plain: list[tuple[int, ...]],
) -> None:
    server = servers.get(*speculation(*shape), *CRAMPED, "--max-running-requests", "16")

    alone = generate(server.url, prompts[:6], GREEDY, concurrency=1)
    assert alone.token_lists == plain[:6]

    crowd = generate(server.url, prompts, GREEDY, concurrency=16, stagger_s=0.02)
    assert crowd.token_lists == plain
    assert crowd.accepted_length > 1.5, "speculation ran and its drafts were accepted"

    again = generate(server.url, prompts[:24], GREEDY, concurrency=16)
    assert again.token_lists == plain[:24]
    assert cached_tokens(again) > 0, "the radix cache was hit"
    assert "etract" in server.log.read_text(), "the small pool made the scheduler retract"


def cached_tokens(batch: Batch) -> int:
    return sum(int(each.meta["cached_tokens"]) for each in batch.rollouts)


def test_plain_decoding_agrees_with_sglangs_own_cpu_attention(
    servers: Servers, prompts: list[list[int]], plain: list[tuple[int, ...]]
) -> None:
    """The portable attention against SGLang's per-request loop, as an outside judge."""
    server = servers.get("--attention-backend", "torch_native", stock=True)
    judge = generate(server.url, prompts[:12], GREEDY, concurrency=4)
    assert judge.token_lists == plain[:12]
