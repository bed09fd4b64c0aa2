"""The portable attention against a per-request, per-query loop in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_respec.upstream.portable import attention_plan
from sglang_respec.upstream.portable.attention_math import attend
from sglang_respec.upstream.portable.attention_plan import plan_ragged, plan_uniform

HEADS, KV_HEADS, DIM, SLOTS, CONTEXT = 4, 2, 8, 512, 96
# Float32 sums of at most 96 products of unit normals, against float64: the error is about
# sqrt(96) * 2^-24 relative to values of order one; 2e-5 leaves a factor of thirty.
TOLERANCE = 2e-5


def make_pool(seed: int, requests: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Key cache, value cache and a req_to_token table of distinct shuffled slots.

    Slot 0, where padding points, is poisoned with huge values: reading it shows.
    """
    generator = torch.Generator().manual_seed(seed)
    key = torch.randn(SLOTS, KV_HEADS, DIM, generator=generator)
    value = torch.randn(SLOTS, KV_HEADS, DIM, generator=generator)
    key[0], value[0] = 1e4, 1e4
    table = torch.zeros(requests + 3, CONTEXT, dtype=torch.int32)
    for row in range(requests + 3):
        table[row] = 1 + torch.randperm(SLOTS - 1, generator=generator)[:CONTEXT]
    return key, value, table


def naive_row(
    query: torch.Tensor,  # [Hq, D]
    key: torch.Tensor,
    value: torch.Tensor,
    slots: list[int],
    scaling: float,
    logit_cap: float = 0.0,
) -> torch.Tensor:
    """One query over the slots it sees, head by head, in float64."""
    out = torch.empty(HEADS, DIM, dtype=torch.float64)
    for head in range(HEADS):
        kv = head // (HEADS // KV_HEADS)
        scores = [float(query[head].double() @ key[s, kv].double()) * scaling for s in slots]
        if logit_cap > 0:
            scores = [logit_cap * math.tanh(s / logit_cap) for s in scores]
        weights = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0)
        out[head] = sum(w * value[s, kv].double() for w, s in zip(weights, slots, strict=True))
    return out


def seen(limit: int, position: int, window: int) -> range:
    """Positions below `limit` that a query at `position` sees."""
    return range(max(0, position - window) if window >= 0 else 0, min(limit, position + 1))


lengths = st.lists(st.integers(1, 60), min_size=1, max_size=7)


@settings(max_examples=40, deadline=None)
@given(lengths, st.sampled_from([-1, 0, 3, 17]), st.integers(0, 9), st.booleans())
def test_decode(lens: list[int], window: int, seed: int, split: bool) -> None:
    key, value, table = make_pool(seed, len(lens))
    query = torch.randn(len(lens), HEADS, DIM, generator=torch.Generator().manual_seed(seed))
    pool_indices = torch.arange(len(lens)) + 2
    kv_lens = torch.tensor(lens)
    with pytest.MonkeyPatch.context() as patch:
        if split:  # force the buckets of unequal lengths apart
            patch.setattr(attention_plan, "PADDING_SLACK_CELLS", 0)
        plan = plan_uniform(table, pool_indices, kv_lens, 1, (kv_lens - 1)[:, None])
    got = attend(query, key, value, plan, scaling=0.3, window=window)
    for i, length in enumerate(lens):
        slots = [int(table[i + 2, p]) for p in seen(length, length - 1, window)]
        want = naive_row(query[i], key, value, slots, 0.3)
        torch.testing.assert_close(got[i].double(), want, atol=TOLERANCE, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=5),
    st.sampled_from([-1, 5]),
    st.sampled_from([0.0, 2.0]),
    st.sampled_from([4, 512]),
    st.integers(0, 9),
)
def test_prefill_with_prefixes(
    shapes: list[tuple[int, int]], window: int, logit_cap: float, block: int, seed: int
) -> None:
    key, value, table = make_pool(seed, len(shapes))
    prefixes, rows = [p for p, _ in shapes], [r for _, r in shapes]
    query = torch.randn(sum(rows), HEADS, DIM, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_plan, "PREFILL_BLOCK_ROWS", block)
        plan = plan_ragged(table, torch.arange(len(shapes)), prefixes, rows)
    got = attend(query, key, value, plan, scaling=0.3, window=window, logit_cap=logit_cap)
    row = 0
    for i, (prefix, count) in enumerate(shapes):
        for j in range(count):
            slots = [int(table[i, p]) for p in seen(prefix + count, prefix + j, window)]
            want = naive_row(query[row], key, value, slots, 0.3, logit_cap)
            torch.testing.assert_close(got[row].double(), want, atol=TOLERANCE, rtol=0)
            row += 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.integers(1, 8),
    st.sampled_from([-1, 6]),
    st.integers(0, 99),
)
def test_tree_verify(prefixes: list[int], nodes: int, window: int, seed: int) -> None:
    """Each node sees the committed prefix, its ancestors and itself, by position."""
    key, value, table = make_pool(seed, len(prefixes))
    generator = torch.Generator().manual_seed(seed)
    batch = len(prefixes)
    parents = [
        [-1] + [int(torch.randint(0, node, (1,), generator=generator)) for node in range(1, nodes)]
        for _ in prefixes
    ]
    ancestors = [[_path(parents[b], node) for node in range(nodes)] for b in range(batch)]
    tree = torch.zeros(batch, nodes, nodes, dtype=torch.bool)
    depth = torch.zeros(batch, nodes, dtype=torch.int64)
    for b in range(batch):
        for node in range(nodes):
            tree[b, node, ancestors[b][node]] = True
            depth[b, node] = len(ancestors[b][node]) - 1
    prefix = torch.tensor(prefixes)
    positions = prefix[:, None] + depth
    query = torch.randn(batch * nodes, HEADS, DIM, generator=generator)
    plan = plan_uniform(
        table, torch.arange(batch), prefix + nodes, nodes, positions, nodes, tree, positions
    )
    got = attend(query, key, value, plan, scaling=0.3, window=window)
    for b in range(batch):
        for node in range(nodes):
            position = int(positions[b, node])
            slots = [int(table[b, p]) for p in seen(prefixes[b], position, window)]
            slots += [
                int(table[b, prefixes[b] + other])
                for other in ancestors[b][node]
                if window < 0 or int(positions[b, other]) >= position - window
            ]
            want = naive_row(query[b * nodes + node], key, value, slots, 0.3)
            torch.testing.assert_close(got[b * nodes + node].double(), want, atol=TOLERANCE, rtol=0)


def _path(parents: list[int], node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path


def test_tree_mask_matters() -> None:
    """Letting a node see its sibling changes the result: the test above can fail."""
    key, value, table = make_pool(0, 1)
    query = torch.randn(3, HEADS, DIM, generator=torch.Generator().manual_seed(0))
    honest = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 0, 1]]], dtype=torch.bool)
    leaky = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 1, 1]]], dtype=torch.bool)
    positions = torch.tensor([[5, 6, 6]])
    results = [
        attend(
            query,
            key,
            value,
            plan_uniform(
                table, torch.tensor([0]), torch.tensor([8]), 3, positions, 3, mask, positions
            ),
            scaling=0.3,
        )
        for mask in (honest, leaky)
    ]
    assert torch.equal(results[0][:2], results[1][:2])
    assert not torch.allclose(results[0][2], results[1][2], atol=1e-3)


def test_bfloat16_stays_bfloat16() -> None:
    key, value, table = make_pool(0, 2)
    query = torch.randn(2, HEADS, DIM).bfloat16()
    lens = torch.tensor([4, 9])
    plan = plan_uniform(table, torch.arange(2), lens, 1, (lens - 1)[:, None])
    got = attend(query, key.bfloat16(), value.bfloat16(), plan, scaling=0.3)
    assert got.dtype == torch.bfloat16
    assert torch.isfinite(got.float()).all()


def test_a_large_ragged_batch_is_not_padded_to_its_longest() -> None:
    """One long request among short ones: padded cells stay within a small factor of real."""
    table = torch.arange(65 * 4096, dtype=torch.int32).view(65, 4096)
    lens = torch.full((64,), 40)
    lens[7] = 4000
    plan = plan_uniform(table, torch.arange(64), lens, 1, (lens - 1)[:, None])
    cells = sum(group.size * group.num_slots for group in plan.groups)
    assert cells <= 2 * int(lens.sum()) + attention_plan.PADDING_SLACK_CELLS
    assert sorted(torch.cat([g.rows for g in plan.groups]).tolist()) == list(range(64))
