"""Batches that no client sent, for measuring: allocated as SGLang does, and gone without a trace.

A server at its start has an empty KV pool, an empty request pool and no prefix cache yet. Requests
are made and admitted by SGLang's own functions, except that their prompts are not run: the times
of a step do not depend on what the KV cache holds. Afterwards the pools, our table of requests
and the random state are as they were.
"""

import random
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixCache
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_respec.upstream.sampling.request_table import request_table

TEMPERATURE = 1.0  # as rollouts sample; the kernels do not branch on the value
TOKEN = 1  # of every prompt; tokens that a vocabulary certainly has


@contextmanager
def dummy_batch(worker: Any, batch_size: int, context_tokens: int) -> Iterator[Any]:
    """A `ScheduleBatch` about to decode: so many requests with so many committed tokens each.

    `spec_info` is left to the caller. Needs pools in which nothing is allocated.
    """
    runner = worker.target_worker.model_runner
    pool, allocator = runner.req_to_token_pool, runner.token_to_kv_pool_allocator
    with _random_state_kept(), _pools_kept(pool, allocator, request_table(runner)):
        batch = ScheduleBatch.init_new(
            reqs=[_request(number, context_tokens) for number in range(batch_size)],
            req_to_token_pool=pool,
            token_to_kv_pool_allocator=allocator,
            tree_cache=_no_cache(pool, allocator),
            model_config=runner.model_config,
            enable_overlap=False,
            spec_algorithm=runner.spec_algorithm,
        )
        batch.prepare_for_extend()
        request_table(runner).enter(batch.req_pool_indices, batch.sampling_info)
        batch.prefill_input_ids_cpu = None
        batch.input_ids = None
        for request in batch.reqs:
            request.kv.kv_committed_len = context_tokens
        batch.prepare_for_decode()
        yield batch


def _request(number: int, context_tokens: int) -> Req:
    params = SamplingParams(temperature=TEMPERATURE, max_new_tokens=1 << 20, ignore_eos=True)
    params.sampling_seed = number
    request = Req(
        rid=f"respec-profile-{number}",
        origin_input_text="",
        origin_input_ids=array("q", [TOKEN] * context_tokens),
        sampling_params=params,
    )
    request.full_untruncated_fill_ids = request.origin_input_ids
    request.logprob_start_len = -1
    request.extend_end = context_tokens
    return request


def _no_cache(pool: Any, allocator: Any) -> Any:
    params = CacheInitParams(
        disable=True,
        req_to_token_pool=pool,
        token_to_kv_pool_allocator=allocator,
        page_size=allocator.page_size,
    )
    return RadixCache(params)


@contextmanager
def _pools_kept(pool: Any, allocator: Any, table: Any) -> Iterator[None]:
    slots, generation = list(pool.free_slots), pool.req_generation.clone()
    rows = [each.clone() for each in (table.seeds, table.temperatures, table.top_ks)]
    available = allocator.available_size()
    try:
        yield
    finally:
        used = sorted(set(slots) - set(pool.free_slots))
        pool.req_to_token[used] = 0
        pool.free_slots[:] = slots
        pool.req_generation.copy_(generation)
        allocator.clear()
        for kept, row in zip(rows, (table.seeds, table.temperatures, table.top_ks), strict=True):
            row.copy_(kept)
    if allocator.available_size() != available:
        raise AssertionError("the KV pool was not empty before a dummy batch")


@contextmanager
def _random_state_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
