"""Dummy batches: about to decode as SGLang's scheduler has them, and gone without a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sglang.srt.utils  # noqa: F401  (before its scheduler: its modules import each other)
import torch
from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.runtime_context import SpawnRanks, create_context, use_context
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from sglang.srt.server_args import prepare_server_args
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from respec_server.bundled import demo_models
from sglang_respec.upstream.dummy_batch import dummy_batch
from sglang_respec.upstream.sampling.request_table import request_table
from sglang_respec.upstream.sampling.rows import describe_rows

SLOTS, TOKENS, CONTEXT = 12, 2000, 90


@pytest.fixture(scope="module", autouse=True)
def served() -> Iterator[None]:
    """SGLang's settings of a server with chains of three, of one rank."""
    target, drafter = map(str, demo_models())
    flags = ["--model-path", target, "--device", "cpu", "--speculative-algorithm", "EAGLE3"]
    flags += ["--speculative-draft-model-path", drafter, "--speculative-num-steps", "3"]
    flags += ["--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4"]
    arguments = prepare_server_args(flags)
    context = create_context(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0))
    original = SamplingBatchInfo.from_schedule_batch

    def described(batch: Any, *rest: Any) -> Any:  # as this project's hook has it
        info = original(batch, *rest)
        describe_rows(info, SamplingBatchInfo, batch)
        return info

    with use_context(context), pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamplingBatchInfo, "from_schedule_batch", described)
        yield


@pytest.fixture
def worker() -> Any:
    """Of a worker, its pools and what its model is."""
    pool = ReqToTokenPool(SLOTS, 256, "cpu", enable_memory_saver=False)
    model = SimpleNamespace(vocab_size=100, is_encoder_decoder=False)
    runner = SimpleNamespace(
        req_to_token_pool=pool,
        token_to_kv_pool_allocator=TokenToKVPoolAllocator(
            TOKENS, torch.float32, "cpu", None, need_sort=False
        ),
        model_config=model,
        spec_algorithm=SpeculativeAlgorithm.EAGLE3,
    )
    return SimpleNamespace(target_worker=SimpleNamespace(model_runner=runner))


def everything(worker: Any) -> list[Any]:
    """What a later request could tell a dummy batch by."""
    runner = worker.target_worker.model_runner
    pool, table = runner.req_to_token_pool, request_table(runner)
    return [
        list(pool.free_slots),
        pool.req_to_token.tolist(),
        pool.req_generation.tolist(),
        runner.token_to_kv_pool_allocator.free_pages.tolist(),
        *(each.tolist() for each in (table.seeds, table.temperatures, table.top_ks)),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    ]


def test_it_is_about_to_decode(worker: Any) -> None:
    runner = worker.target_worker.model_runner
    with dummy_batch(worker, 3, CONTEXT) as batch:
        assert batch.forward_mode.is_decode()
        assert batch.seq_lens.tolist() == batch.seq_lens_cpu.tolist() == [CONTEXT] * 3
        owned = [each.kv.kv_allocated_len for each in batch.reqs]
        rows = runner.req_to_token_pool.req_to_token[batch.req_pool_indices]
        slots = [token for row, n in zip(rows.tolist(), owned, strict=True) for token in row[:n]]
        assert min(owned) >= CONTEXT + 4, "a round has its slots"
        assert len(set(slots)) == len(slots)
        assert min(slots) > 0
        assert request_table(runner).seeds[batch.req_pool_indices].tolist() == [0, 1, 2]


@pytest.mark.parametrize("requests", [1, 7, SLOTS])
def test_nothing_of_it_remains(worker: Any, requests: int) -> None:
    before = everything(worker)
    with dummy_batch(worker, requests, CONTEXT) as batch:
        assert everything(worker) != before
        random.random(), np.random.rand(), torch.rand(3)
        request_table(worker.target_worker.model_runner).temperatures[batch.req_pool_indices] = 0.2
    assert everything(worker) == before


def test_nothing_remains_of_one_that_failed(worker: Any) -> None:
    before = everything(worker)
    with pytest.raises(MemoryError), dummy_batch(worker, 2, CONTEXT):
        raise MemoryError
    assert everything(worker) == before
