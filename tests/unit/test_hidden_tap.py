"""The ring of hidden states: what was written comes back, by position, up to the window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_respec.hidden_tap import HiddenTap, last_positions

WIDTH = 3


def state(slot, position):
    """What the target would leave at this position: told apart by slot and position."""
    return [float(slot), float(position), 1.0]


def token(slot, position):
    return 1000 * slot + position


def make(window, rows=4):
    return HiddenTap(rows, window, WIDTH, torch.float32, "cpu")


def write_step(tap, slots, positions):
    tap.write_step(
        np.array(slots),
        torch.tensor(slots),
        torch.tensor(positions),
        torch.tensor([state(s, p) for s, p in zip(slots, positions, strict=True)]),
        torch.tensor([token(s, p + 1) for s, p in zip(slots, positions, strict=True)]),
    )


def write_prefill(tap, slots, prefixes, lens):
    where = [(s, p + i) for s, p, n in zip(slots, prefixes, lens, strict=True) for i in range(n)]
    tap.write_prefill(
        slots,
        prefixes,
        lens,
        torch.tensor([state(*each) for each in where]),
        torch.tensor([token(s, p + 1) for s, p in where]),
    )


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 9))
def test_chunks_and_steps_come_back(window, chunks, steps):
    tap, slot, length = make(window), 2, 5  # the first five positions are another's, cached
    for chunk in chunks:
        write_prefill(tap, [slot, 3], [length, 0], [chunk, 1])
        length += chunk
    for _ in range(steps):
        write_step(tap, [slot], [length])
        length += 1
    assert tap.gap[slot] == length - 5
    kept = tap.kept(np.array([slot]))
    assert kept[0] == min(length - 5, window)
    hidden, tokens = tap.read(np.array([slot]), np.array([length]), kept)
    positions = range(length - kept[0], length)
    assert hidden.tolist() == [state(slot, p) for p in positions]
    assert tokens.tolist() == [token(slot, p + 1) for p in positions]


def test_requests_of_a_batch_keep_apart():
    tap = make(window=4)
    write_prefill(tap, [1, 3], [0, 7], [6, 2])
    write_step(tap, [3, 1], [9, 6])
    slots, ends = np.array([1, 3]), np.array([7, 10])
    hidden, _ = tap.read(slots, ends, tap.kept(slots))
    expected = [state(1, p) for p in (3, 4, 5, 6)] + [state(3, p) for p in (7, 8, 9)]
    assert hidden.tolist() == expected


def test_a_slot_is_full_when_the_next_token_would_overwrite():
    tap = make(window=3)
    write_prefill(tap, [0, 1], [0, 0], [2, 1])
    slots = np.array([0, 1])
    assert tap.full(slots).tolist() == [False, False]
    write_step(tap, [0, 1], [2, 1])
    assert tap.full(slots).tolist() == [True, False]
    tap.mark_warm(np.array([0]))
    assert tap.full(slots).tolist() == [False, False]
    assert tap.kept(slots).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("owner", "prefix", "gap"),
    [(("a", 0), 4, 4), (("b", 0), 4, 0), (("a", 1), 4, 0), (("a", 0), 2, 0)],
    ids=["the next chunk", "another request", "after a retraction", "from an earlier position"],
)
def test_a_new_holder_starts_without_a_gap(owner, prefix, gap):
    tap = make(window=8)
    tap.begin_prefill([1], [("a", 0)], [0])
    tap.end_prefill([1], [("a", 0)], [4])
    write_prefill(tap, [1], [0], [4])
    tap.begin_prefill([1], [owner], [prefix])
    assert tap.gap[1] == gap


def test_the_ring_says_what_it_takes():
    assert make(window=5, rows=4).ring_bytes == 4 * 5 * (WIDTH * 4 + 8)


def test_last_positions():
    found = last_positions(np.array([10, 4, 7]), np.array([3, 0, 2]))
    assert found.tolist() == [7, 8, 9, 5, 6]
