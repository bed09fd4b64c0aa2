"""Measured times on a grid, made monotone, and linear in between."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_respec.errors import RespecError

Axis = tuple[float, ...]


def isotonic(values: Sequence[float]) -> list[float]:
    """The nearest non-decreasing sequence in least squares (pool adjacent violators).

    A larger batch is never faster than a smaller one; where a measurement says so it is noise.
    """
    pools: list[tuple[float, int]] = []  # (mean, members)
    for value in values:
        mean, members = value, 1
        while pools and pools[-1][0] > mean:
            left, count = pools.pop()
            mean = (left * count + mean * members) / (count + members)
            members += count
        pools.append((mean, members))
    return [mean for mean, members in pools for _ in range(members)]


def locate(axis: Axis, x: float) -> tuple[int, float]:
    """``(i, w)`` with x = axis[i] + w (axis[i+1] - axis[i]).

    Below the axis the first knot holds (w 0); above, the last segment is continued (w > 1). An
    axis of one knot is constant.
    """
    if len(axis) == 1 or x <= axis[0]:
        return 0, 0.0
    i = min(bisect_right(axis, x), len(axis) - 1) - 1
    return i, (x - axis[i]) / (axis[i + 1] - axis[i])


def lerp(row: Sequence[float], i: int, w: float) -> float:
    """Linear between ``row[i]`` and ``row[i + 1]``."""
    return row[i] if w == 0.0 else row[i] + w * (row[i + 1] - row[i])


@dataclass(frozen=True)
class Grid:
    """Seconds over (width, batch size, context). Non-decreasing along each axis within the grid.

    Beyond it each axis goes on with its last slope, never with a falling one, so times stay
    positive; there, only the axis that was left is sure to be non-decreasing.

    Width is what the stage does per request: nodes verified, candidates drafted, tokens extended.
    """

    widths: Axis
    batch_sizes: Axis
    context_tokens: Axis
    seconds: tuple[tuple[tuple[float, ...], ...], ...]  # [widths][batch_sizes][context_tokens]

    @classmethod
    def from_measurements(
        cls,
        widths: Sequence[float],
        batch_sizes: Sequence[float],
        context_tokens: Sequence[float],
        seconds: Sequence[Sequence[Sequence[float]]],
    ) -> Grid:
        """Smooth the noise out of measurements so that more work never costs less.

        One isotonic pass per axis is enough: isotonic regression keeps the order of its
        arguments, so a later pass does not undo an earlier one.
        """
        for name, axis in (
            ("widths", widths), ("batch_sizes", batch_sizes), ("context_tokens", context_tokens),
        ):  # fmt: skip
            if (
                not axis
                or list(axis) != sorted(set(axis))
                or not 0.0 <= min(axis) <= max(axis) < 1e9
            ):
                raise RespecError(f"{name} must be ascending numbers, got {list(axis)!r}.")
        if (
            len(seconds) != len(widths)
            or any(len(plane) != len(batch_sizes) for plane in seconds)
            or any(len(row) != len(context_tokens) for plane in seconds for row in plane)
        ):
            raise RespecError(
                f"seconds must be {len(widths)} x {len(batch_sizes)} x {len(context_tokens)} "
                "numbers, like its axes."
            )
        if any(not 0.0 < t < 3600.0 for plane in seconds for row in plane for t in row):
            raise RespecError("seconds must be positive and below an hour.")
        cube = [[isotonic(row) for row in plane] for plane in seconds]
        cube = [_columns([isotonic(column) for column in _columns(plane)]) for plane in cube]
        for b in range(len(batch_sizes)):
            for c in range(len(context_tokens)):
                for plane, value in zip(cube, isotonic([p[b][c] for p in cube]), strict=True):
                    plane[b][c] = value
        frozen = tuple(tuple(tuple(row) for row in plane) for plane in cube)
        return cls(tuple(widths), tuple(batch_sizes), tuple(context_tokens), frozen)

    def at(self, width: float, batch_size: float, context_tokens: float) -> float:
        """Seconds at any point; see :func:`locate` for points outside the grid."""
        i, w = locate(self.widths, width)
        b, v = locate(self.batch_sizes, batch_size)
        c, u = locate(self.context_tokens, context_tokens)
        low = self._plane(i, b, v, c, u)
        return low if w == 0.0 else low + w * max(0.0, self._plane(i + 1, b, v, c, u) - low)

    def _plane(self, i: int, b: int, v: float, c: int, u: float) -> float:
        plane = self.seconds[i]
        low = lerp(plane[b], c, u)
        return low if v == 0.0 else low + v * max(0.0, lerp(plane[b + 1], c, u) - low)


def _columns(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]
