"""Which rows of a tree are sampled at once: all of them, or the live one of each level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["auto", "nodes", "levels"]

DEFAULT_ACCEPTED_LENGTH = 3.0  # per verification, bonus included; a caller that measures, passes it
_LAUNCHES_OF_NODES = 2  # sample all rows, walk
_LAUNCHES_PER_LEVEL = 2  # sample the live rows, one step of the walk


@dataclass(frozen=True)
class Machine:
    """What the choice depends on: how fast a row is read and what a launch costs."""

    bytes_per_s: float  # of logits through sample_rows
    launch_s: float


# A GPU: an order of magnitude (HBM at 2 TB/s; a launch inside a CUDA graph, its drain included).
GPU = Machine(bytes_per_s=2e12, launch_s=4e-6)
# One CPU thread of docs/results/kernels_cpu.json: about 20 ns per float32 cell, and 0.4 ms for the
# PyTorch calls of a level.
CPU = Machine(bytes_per_s=2e8, launch_s=2e-4)


def choose_schedule(
    batch: int,
    nodes: int,
    row_bytes: int,
    max_depth: int,
    machine: Machine,
    accepted_length: float = DEFAULT_ACCEPTED_LENGTH,
) -> Literal["nodes", "levels"]:
    """Return the schedule with the lower expected time, by bytes and launches.

    A request visits as many rows as it commits tokens, its accepted length A, bonus included:

        nodes:   B * n rows are read,  2 launches
        levels:  B * A rows are read,  2 launches for each of the D levels a CUDA graph holds

    and levels win when B * (n - A) * row_bytes / bandwidth > (2 * D - 2) * launch. A shortens what
    levels read, never their launches: a captured graph runs all D. Levels of a chain of one node
    are the same thing, so nodes.
    """
    spared_rows = batch * (nodes - min(accepted_length, nodes))
    extra_launches = _LAUNCHES_PER_LEVEL * max_depth - _LAUNCHES_OF_NODES
    gain_s = spared_rows * row_bytes / machine.bytes_per_s
    return "levels" if gain_s > extra_launches * machine.launch_s else "nodes"
