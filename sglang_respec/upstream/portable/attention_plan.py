"""Which queries see which key/value slots: one description for every forward mode.

Prefill, decode, tree verification, draft-extend and multi-step drafting differ only in
three things per request: how many query rows it has, how many slots of its `req_to_token`
row they may read, and which of those each query sees. An `AttentionPlan` states exactly
that, once per forward, so that every layer runs the same few batched PyTorch calls.

Suffixes: B requests of a group, Q query rows per request (padded), L slots (padded).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

# Requests of unequal length are padded to the longest of their group. A group may waste
# this many (query, slot) cells before it is split: below it, one more batched call costs
# more than the padding.
PADDING_SLACK_CELLS = 1 << 16
# A long prefill is cut into blocks of queries so that no mask grows with the square of
# the prompt; each block reads only the slots up to its last query.
PREFILL_BLOCK_ROWS = 512

MaskFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class AttentionGroup:
    """Requests that are attended together, padded to one rectangle.

    rows: [B*Q] i64 query rows of the flat batch, or None when the group is the whole batch
        in order (then no row is moved). Padding repeats the request's first row.
    keep: [n] i64 positions in [B*Q] that are real, or None when none is padding.
    slots: [B*L] i64 key/value slots; padding points at slot 0, which SGLang reserves.
    mask: [B, Q, L] bool, True where the query sees the slot. Every row sees at least one.
    causal_alone: the mask is the plain lower triangle of one request without a prefix.
    """

    size: int
    num_queries: int
    num_slots: int
    slots: torch.Tensor
    mask: torch.Tensor | None
    rows: torch.Tensor | None = None
    keep: torch.Tensor | None = None
    causal_alone: bool = False
    # Positions of queries [B, Q] and of slots [B, L] in the sequence: windows need both.
    query_positions: torch.Tensor | None = None
    slot_positions: torch.Tensor | None = None
    _bias: dict[tuple[int, int, torch.dtype], torch.Tensor | None] = field(default_factory=dict)
    _swa_slots: torch.Tensor | None = None

    def bias(self, window: int, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Additive mask [B, 1, repeats*Q, L] in `dtype`, made once per forward.

        window: how many tokens back a query sees, itself excluded; negative for all.
        repeats: query heads per key/value head, folded into the query rows.
        """
        key = (window, repeats, dtype)
        if key not in self._bias:
            self._bias[key] = self._make_bias(window, repeats, dtype)
        return self._bias[key]

    def _make_bias(self, window: int, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        visible = self.mask
        if window >= 0:
            assert self.query_positions is not None
            assert self.slot_positions is not None
            near = self.slot_positions[:, None, :] >= self.query_positions[:, :, None] - window
            visible = near if visible is None else visible & near
        if visible is None:
            return None
        bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        bias.masked_fill_(~visible, float("-inf"))
        if repeats > 1 and self.num_queries > 1:
            bias = bias.repeat(1, repeats, 1)
        return bias[:, None]

    def swa_slots(self, translate: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The same slots in the sliding-window pool's own numbering."""
        if self._swa_slots is None:
            self._swa_slots = translate(self.slots)
        return self._swa_slots


@dataclass(frozen=True)
class AttentionPlan:
    groups: tuple[AttentionGroup, ...]


def plan_uniform(
    req_to_token: torch.Tensor,  # [max_reqs, max_context] i32
    req_pool_indices: torch.Tensor,  # [B] i64
    kv_lens: torch.Tensor,  # [B] i64, slots each request may read
    num_queries: int,
    query_positions: torch.Tensor,  # [B, Q] i64
    tail_len: int = 0,
    tail_mask: torch.Tensor | None = None,
    tail_positions: torch.Tensor | None = None,
) -> AttentionPlan:
    """Plan for a batch in which every request has the same number of query rows.

    The last `tail_len` slots of each request are seen through `tail_mask` [B, Q, tail_len]
    (a draft tree, or the branches of a multi-step draft), everything before them by every
    query. Without a tail mask a query sees the slots up to its own position.
    `tail_positions` [B, tail_len] gives the tail slots' positions for sliding windows.
    """
    batch = req_pool_indices.shape[0]
    groups = []
    for members in _length_buckets(kv_lens, num_queries):
        if members is None:
            pick = slice(None)
            rows = None
        else:
            pick = members
            offsets = torch.arange(num_queries, device=members.device)
            rows = (members[:, None] * num_queries + offsets).reshape(-1)
        lens = kv_lens[pick]
        longest = int(lens.max())
        columns = torch.arange(longest, device=kv_lens.device)
        inside = columns < lens[:, None]
        slots = req_to_token[req_pool_indices[pick], :longest].to(torch.int64)
        slots = torch.where(inside, slots, 0).reshape(-1)
        positions = query_positions[pick]
        slot_positions = columns.expand(inside.shape)
        if tail_mask is None:
            mask = columns <= positions[:, :, None]
            mask &= inside[:, None, :]
        else:
            mask, slot_positions = _with_tail(
                columns,
                inside,
                lens - tail_len,
                tail_mask[pick],
                slot_positions,
                None if tail_positions is None else tail_positions[pick],
            )
        size = batch if members is None else members.shape[0]
        everything_seen = num_queries == 1 and tail_mask is None and size == 1
        groups.append(
            AttentionGroup(
                size=size,
                num_queries=num_queries,
                num_slots=longest,
                slots=slots,
                mask=None if everything_seen else mask,
                rows=rows,
                query_positions=positions,
                slot_positions=slot_positions,
            )
        )
    return AttentionPlan(tuple(groups))


def _with_tail(
    columns: torch.Tensor,
    inside: torch.Tensor,
    tail_starts: torch.Tensor,
    tail_mask: torch.Tensor,
    slot_positions: torch.Tensor,
    tail_positions: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask [B, Q, L] and slot positions [B, L] of prefixes followed by masked tails."""
    batch, num_queries, tail_len = tail_mask.shape
    offset = columns - tail_starts[:, None]  # [B, L], >= 0 inside the tail
    in_prefix = offset < 0
    in_tail = (offset >= 0) & inside
    index = offset.clamp(0, tail_len - 1)
    from_tail = torch.gather(tail_mask, 2, index[:, None, :].expand(batch, num_queries, -1))
    mask = in_prefix[:, None, :] | (in_tail[:, None, :] & from_tail)
    if tail_positions is not None:
        slot_positions = torch.where(
            in_tail, torch.gather(tail_positions, 1, index), slot_positions
        )
    return mask, slot_positions


def _length_buckets(kv_lens: torch.Tensor, num_queries: int) -> list[torch.Tensor | None]:
    """Splits a batch so that padding wastes little; [None] means one group of all.

    The loop is over powers of two of the length, never over requests.
    """
    batch = kv_lens.shape[0]
    longest = int(kv_lens.max()) if batch else 0
    padded_cells = batch * longest * num_queries
    cells = int(kv_lens.sum()) * num_queries
    if padded_cells <= 2 * cells or padded_cells - cells <= PADDING_SLACK_CELLS:
        return [None]
    exponent = torch.log2(kv_lens.clamp(min=1).double()).ceil().to(torch.int64)
    return [(exponent == e).nonzero().flatten() for e in exponent.unique().tolist()]


def plan_ragged(
    req_to_token: torch.Tensor,  # [max_reqs, max_context] i32
    req_pool_indices: torch.Tensor,  # [B] i64
    prefix_lens: list[int],
    query_lens: list[int],
    bidirectional: bool = False,
) -> AttentionPlan:
    """Plan for prefill: requests bring different numbers of query rows.

    Short requests of like shape are padded together; a long prompt becomes blocks of
    `PREFILL_BLOCK_ROWS` queries. `bidirectional` lets every query see every slot.
    """
    blocks = _query_blocks(prefix_lens, query_lens, bidirectional)
    groups = [
        _ragged_group(req_to_token, req_pool_indices, members, bidirectional)
        for members in _pack(blocks)
    ]
    return AttentionPlan(tuple(groups))


@dataclass(frozen=True)
class _QueryBlock:
    request: int
    first_row: int
    num_rows: int
    first_position: int
    kv_len: int

    @property
    def cells(self) -> int:
        return self.num_rows * self.kv_len


def _query_blocks(
    prefix_lens: list[int], query_lens: list[int], bidirectional: bool
) -> list[_QueryBlock]:
    blocks = []
    row = 0
    for request, (prefix, rows) in enumerate(zip(prefix_lens, query_lens, strict=True)):
        for start in range(0, rows, PREFILL_BLOCK_ROWS):
            count = min(PREFILL_BLOCK_ROWS, rows - start)
            kv_len = prefix + (rows if bidirectional else start + count)
            blocks.append(_QueryBlock(request, row + start, count, prefix + start, kv_len))
        row += rows
    return blocks


def _pack(blocks: list[_QueryBlock]) -> list[list[_QueryBlock]]:
    """Greedy packing of blocks of like shape, largest first, under the padding bound."""
    packed: list[list[_QueryBlock]] = []
    rows = slots = cells = 0
    for block in sorted(blocks, key=lambda b: (-b.num_rows, -b.kv_len)):
        if packed:
            rectangle = (len(packed[-1]) + 1) * max(rows, block.num_rows) * max(slots, block.kv_len)
            wasted = rectangle - cells - block.cells
            if wasted <= max(cells + block.cells, PADDING_SLACK_CELLS) and rectangle <= 1 << 22:
                packed[-1].append(block)
                rows, slots = max(rows, block.num_rows), max(slots, block.kv_len)
                cells += block.cells
                continue
        packed.append([block])
        rows, slots, cells = block.num_rows, block.kv_len, block.cells
    return packed


def _ragged_group(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    members: list[_QueryBlock],
    bidirectional: bool,
) -> AttentionGroup:
    device = req_to_token.device
    fields = torch.tensor(
        [(b.request, b.first_row, b.num_rows, b.first_position, b.kv_len) for b in members],
        dtype=torch.int64,
        device=device,
    )
    request, first_row, num_rows, first_position, kv_len = fields.unbind(1)
    num_queries, num_slots = max(b.num_rows for b in members), max(b.kv_len for b in members)

    step = torch.arange(num_queries, device=device)
    real = step < num_rows[:, None]  # [B, Q]
    rows = (first_row[:, None] + torch.where(real, step, 0)).reshape(-1)
    positions = first_position[:, None] + torch.where(real, step, 0)

    columns = torch.arange(num_slots, device=device)
    inside = columns < kv_len[:, None]
    slots = req_to_token[req_pool_indices[request], :num_slots].to(torch.int64)
    slots = torch.where(inside, slots, 0).reshape(-1)

    mask = inside[:, None, :].expand(-1, num_queries, -1)
    if not bidirectional:
        mask = mask & (columns <= positions[:, :, None])
    alone = len(members) == 1
    return AttentionGroup(
        size=len(members),
        num_queries=num_queries,
        num_slots=num_slots,
        slots=slots,
        mask=mask,
        rows=rows,
        keep=None if bool(real.all()) else real.reshape(-1).nonzero().flatten(),
        causal_alone=alone and not bidirectional and members[0].first_position == 0,
        query_positions=positions,
        slot_positions=columns.expand(inside.shape),
    )
