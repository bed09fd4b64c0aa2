"""Each index function against a loop over requests, with what it must not touch poisoned."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_respec.upstream.portable import index_ops

CONTEXT = 40
POISON = -99


@dataclass
class Pool:
    """A req_to_token table of distinct slots, and which of its rows the batch has, shuffled."""

    table: torch.Tensor  # [rows, CONTEXT] i32
    rows: torch.Tensor  # [B] i64

    def slots(self, request: int, start: int, end: int) -> list[int]:
        return [int(self.table[self.rows[request], column]) for column in range(start, end)]

    def windows(self, starts: list[int], width: int) -> list[int]:
        return [
            slot for i, start in enumerate(starts) for slot in self.slots(i, start, start + width)
        ]


@st.composite
def pools(draw: st.DrawFn, batch: int) -> Pool:
    rows = batch + draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    slots = torch.randperm(rows * CONTEXT, generator=generator).to(torch.int32)
    return Pool(slots.view(rows, CONTEXT), torch.randperm(rows, generator=generator)[:batch])


batches = st.integers(1, 6)
example = settings(max_examples=50, deadline=None)


@st.composite
def starts(draw: st.DrawFn, room: int = 0) -> tuple[Pool, list[int]]:
    """A pool and one position per request with at least `room` slots after it."""
    batch = draw(batches)
    length = st.integers(0, CONTEXT - room)
    return draw(pools(batch)), draw(st.lists(length, min_size=batch, max_size=batch))


@example
@given(starts(room=12), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_draft_slots_follow_the_committed_tokens(
    case: tuple[Pool, list[int]], topk: int, columns: int, with_positions: bool
) -> None:
    pool, lens = case
    batch = len(lens)
    out = torch.full((batch * topk * columns,), POISON)
    positions = torch.full((batch * topk,), POISON) if with_positions else None
    mrope = torch.full((3, batch * topk), POISON) if with_positions else None
    index_ops.assign_draft_cache_locs_contiguous_func(
        pool.rows, pool.table, torch.tensor(lens), out, topk, columns, positions, mrope
    )
    assert out.tolist() == pool.windows(lens, topk * columns)
    if positions is not None and mrope is not None:
        repeated = [start for start in lens for _ in range(topk)]
        assert positions.tolist() == repeated
        assert mrope.tolist() == [repeated] * 3


@example
@given(starts(room=16), st.integers(1, 16))
def test_verify_slots_are_one_window_per_request(case: tuple[Pool, list[int]], nodes: int) -> None:
    pool, lens = case
    got = index_ops.speculative_cache_locs(
        req_pool_indices=pool.rows,
        req_to_token=pool.table,
        start_offset=torch.tensor(lens),
        end_offset=torch.tensor(lens) + nodes,
        batch_size=len(lens),
        draft_token_num=nodes,
        device="cpu",
    )
    assert got.dtype == torch.int64
    assert got.tolist() == pool.windows(lens, nodes)


@example
@given(starts(), st.data())
def test_new_slots_are_written_into_each_requests_row(
    case: tuple[Pool, list[int]], data: st.DataObject
) -> None:
    pool, lens = case
    one_each = data.draw(st.booleans()) and max(lens) < CONTEXT  # as after plain steps
    ends = [start + 1 if one_each else data.draw(st.integers(start, CONTEXT)) for start in lens]
    fresh = list(range(1000, 1000 + sum(ends) - sum(lens)))
    want = pool.table.clone()
    unread: Iterator[int] = iter(fresh)
    for request, (start, end) in enumerate(zip(lens, ends, strict=True)):
        for column in range(start, end):
            want[pool.rows[request], column] = next(unread)
    index_ops.assign_req_to_token_pool_func(
        pool.rows,
        pool.table,
        torch.tensor(lens, dtype=torch.int32),
        torch.tensor(ends, dtype=torch.int32),
        # SGLang may hand over a longer buffer.
        torch.tensor([*fresh, *[POISON] * data.draw(st.integers(0, 2))]),
        len(lens),
    )
    assert torch.equal(pool.table, want)


@example
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.booleans())
def test_the_bonus_is_the_last_committed_token(accept_lens: list[int], flat: bool) -> None:
    batch, depth = len(accept_lens), 5
    tokens = torch.arange(100, 100 + batch * depth, dtype=torch.int32).view(batch, depth)
    bonus = torch.full((batch,), POISON, dtype=torch.int32)
    index_ops.fill_bonus_tokens_func(
        tokens.flatten() if flat else tokens, torch.tensor(accept_lens, dtype=torch.int32), bonus,
        depth, batch,
    )  # fmt: skip
    assert bonus.tolist() == [int(tokens[i, n - 1]) for i, n in enumerate(accept_lens)]


@example
@given(st.lists(st.integers(0, 23) | st.just(-1), min_size=1, max_size=20), st.integers(0, 5))
def test_accepted_slots_are_packed_to_the_front(accepted: list[int], beyond: int) -> None:
    window = torch.randperm(24, generator=torch.Generator().manual_seed(len(accepted)))
    out = torch.full((len(accepted),), POISON)
    size = max(1, len(accepted) - beyond)
    index_ops.fill_accept_out_cache_loc_func(
        torch.tensor(accepted, dtype=torch.int32), window, out, size
    )
    packed = [int(window[node]) for node in accepted[:size] if node >= 0]
    assert out.tolist() == packed + [POISON] * (len(accepted) - len(packed))


@example
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_the_first_slots_of_each_window_are_packed(counts: list[int]) -> None:
    window = torch.arange(500, 500 + 4 * len(counts))
    out = torch.full_like(window, POISON)
    index_ops.fill_front_out_cache_loc_func(torch.tensor(counts), window, out)
    packed = [500 + 4 * i + column for i, count in enumerate(counts) for column in range(count)]
    assert out.tolist() == packed + [POISON] * (len(window) - len(packed))


@example
@given(starts())
def test_the_last_slot_of_each_prefix(case: tuple[Pool, list[int]]) -> None:
    pool, lens = case
    got = index_ops.get_last_loc(pool.table, pool.rows, torch.tensor(lens))
    assert got.dtype == torch.int64  # as SGLang's own variants return it
    want = [pool.slots(i, n - 1, n)[0] if n else -1 for i, n in enumerate(lens)]
    assert got.tolist() == want
