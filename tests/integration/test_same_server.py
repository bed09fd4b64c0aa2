"""`sglang serve` is our server when this package is installed, and SGLang's own with one switch."""

import pytest
from rollouts import Batch, generate
from serving import Servers, speculation

pytestmark = pytest.mark.server

GREEDY = {"temperature": 0.0, "max_new_tokens": 64, "ignore_eos": True}
OUR_WORKER = "respec: RespecWorker serves EAGLE3."


def test_sglang_serve_runs_our_worker_unless_told_not_to(
    servers: Servers, prompts: list[list[int]]
) -> None:
    flags = speculation(5, 1, 6)
    ours = servers.get(*flags, program="sglang")
    batch = generate(ours.url, prompts[:16], GREEDY, concurrency=4)
    assert ours.log.read_text().count(OUR_WORKER) == 1

    stock = servers.get(*flags, stock=True)
    stock_batch = generate(stock.url, prompts[:16], GREEDY, concurrency=4)
    assert OUR_WORKER not in stock.log.read_text()

    assert batch.token_lists == stock_batch.token_lists
    assert verifies(batch) > 0
    assert verifies(stock_batch) > 0


def verifies(batch: Batch) -> int:
    return sum(each.verifies for each in batch.rollouts)
