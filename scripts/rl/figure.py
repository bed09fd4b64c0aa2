"""Four panels by policy step: reward, accepted length, rollout speed, drafter version."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rl.records import ARMS, ArmRun, StepRecord

COLOURS = {
    "plain": "#8d949e",
    "frozen": "#c9803a",
    "learner": "#1c4f88",
    "learner-reward": "#6aa7e0",
    "learner-advantage": "#3f9b6d",
    "learner-length": "#9a5fb0",
}
# Drawn from wide to narrow, so that equal curves all show.
WIDTHS = (6.0, 4.0, 2.4, 1.2, 1.2, 1.2)
PANELS: tuple[tuple[str, Callable[[StepRecord], float | None]], ...] = (
    ("reward, mean of a step", lambda each: each.reward),
    ("accepted length", lambda each: each.accepted_length),
    ("rollout tokens/s", lambda each: each.tokens_per_s),
    ("drafter version", lambda each: each.drafter_version),
)


def draw(path: Path, runs: Sequence[ArmRun], title: str) -> None:
    """Medians over the seeds as lines, smallest to largest as a band."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, grid = plt.subplots(2, 2, figsize=(10, 6.6), dpi=150, layout="constrained")
    arms = [name for name in ARMS if any(run.arm == name for run in runs)]
    for axes, (label, value) in zip(grid.flat, PANELS, strict=True):
        for arm, width in zip(arms, WIDTHS, strict=False):
            equal = label.startswith("reward")
            _line(
                axes, arm, [run for run in runs if run.arm == arm], value, width if equal else 1.6
            )
        axes.set_title(label, loc="left", fontsize=10)
        axes.set_xlabel("policy step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][1].set_ylim(bottom=1)
    grid[1][0].set_ylim(bottom=0)
    grid[1][1].yaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No software version and no date in the file: the same figures give the same bytes.
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _line(
    axes: Any,
    arm: str,
    runs: Sequence[ArmRun],
    value: Callable[[StepRecord], float | None],
    width: float,
) -> None:
    rows = [[value(step) for step in run.steps] for run in runs]
    columns = [[each for each in column if each is not None] for column in zip(*rows, strict=True)]
    if not all(columns):
        return  # plain decoding has no accepted length and no drafter
    steps = range(len(columns))
    middle = [statistics.median(column) for column in columns]
    axes.plot(steps, middle, color=COLOURS[arm], linewidth=width, label=arm)
    if len(runs) > 1:
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(steps, low, high, color=COLOURS[arm], alpha=0.15, linewidth=0)
