"""Speculation cannot change a rollout: chains and trees give plain decoding's tokens at any
temperature, under every filter, penalty and constraint, mixed in one batch.

`scripts/check_equality.py` asks the same of two hundred requests of each kind.
"""

import pytest
from rollouts import generate
from sampling_kinds import KINDS, mixed_batch
from serving import Servers, speculation

pytestmark = pytest.mark.server

TOKENS = 48
PER_KIND = 4
FLAGS = ["--max-running-requests", "32", "--enable-custom-logit-processor"]
CRAMPED = [*FLAGS, "--chunked-prefill-size", "64", "--max-total-tokens", "3000"]

Lists = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def plain(servers: Servers, prompts: list[list[int]]) -> Lists:
    """Our server without a drafter, requests by themselves as far as that goes: two at a time."""
    server = servers.get(*FLAGS)
    asked, sampling = mixed_batch(prompts, PER_KIND, TOKENS)
    return generate(server.url, asked, sampling, concurrency=2).token_lists


@pytest.mark.parametrize("shape", [(5, 1, 6), (4, 4, 12)], ids=str)
def test_tokens_are_those_of_plain_decoding(
    shape: tuple[int, int, int], servers: Servers, prompts: list[list[int]], plain: Lists
) -> None:
    server = servers.get(*speculation(*shape), *CRAMPED)
    asked, sampling = mixed_batch(prompts, PER_KIND, TOKENS)
    batch = generate(server.url, asked, sampling, concurrency=32, stagger_s=0.01)
    wrong = {
        name
        for i, name in enumerate(name for name in KINDS for _ in range(PER_KIND))
        if batch.token_lists[i] != plain[i]
    }
    assert not wrong
    assert batch.accepted_length > 1.5, "drafts were accepted"
    assert "etract" in server.log.read_text(), "the small pool made the scheduler retract"
