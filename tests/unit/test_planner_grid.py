"""Monotone grids: noise is pooled, points between knots are linear."""

from __future__ import annotations

import math

import pytest
from planner_cases import grid

from sglang_respec.errors import RespecError
from sglang_respec.planner.grid import Grid, isotonic, locate


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([3.0], [3.0]),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ([3.0, 1.0], [2.0, 2.0]),
        ([1.0, 4.0, 2.0, 3.0, 9.0], [1.0, 3.0, 3.0, 3.0, 9.0]),
        ([5.0, 4.0, 3.0, 2.0], [3.5, 3.5, 3.5, 3.5]),
    ],
)
def test_isotonic(values, expected):
    assert isotonic(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("x", "expected"),
    [(0.0, (0, 0.0)), (1.0, (0, 0.0)), (2.0, (0, 1 / 3)), (4.0, (1, 0.0)), (13.0, (1, 1.5))],
)
def test_locate(x, expected):
    assert locate((1.0, 4.0, 10.0), x) == pytest.approx(expected)


def test_one_knot_is_constant():
    assert locate((7.0,), 100.0) == (0, 0.0)


def test_a_linear_function_is_reproduced_everywhere():
    def seconds(w, b, c):
        return 1e-3 * (1 + 2 * w + 3 * b) + 1e-6 * c

    made = grid(seconds, widths=(1.0, 4.0, 8.0))
    for point in [(1, 1, 128), (2, 5, 1000), (6.5, 40, 300), (8, 64, 4096), (16, 128, 8192)]:
        # a linear function is its own interpolation; 1e-12 is far above rounding
        assert made.at(*point) == pytest.approx(seconds(*point), rel=1e-12)


def test_below_the_grid_the_first_knot_holds():
    made = grid(lambda w, b, c: 1e-3 * b)
    assert made.at(1, 0.5, 1) == made.at(1, 1, 128)


@pytest.mark.parametrize(
    ("axes", "seconds", "word"),
    [
        (((), (1.0,), (1.0,)), [], "widths"),
        (((1.0,), (4.0, 1.0), (1.0,)), [[[1.0], [1.0]]], "batch_sizes"),
        (((1.0,), (1.0,), (math.nan,)), [[[1.0]]], "context_tokens"),
        (((1.0,), (1.0,), (1.0, 2.0)), [[[1.0]]], "1 x 1 x 2"),
        (((1.0,), (1.0,), (1.0,)), [[[0.0]]], "positive"),
        (((1.0,), (1.0,), (1.0,)), [[[math.nan]]], "positive"),
        (((1.0,), (1.0,), (1.0,)), [[[1e9]]], "an hour"),
    ],
)
def test_bad_grids_say_what_is_wrong(axes, seconds, word):
    with pytest.raises(RespecError, match=word):
        Grid.from_measurements(*axes, seconds)
