"""What every benchmark writes: facts about the machine, spreads, tables, plots, a README section.

Nothing here starts a server or knows what was measured.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from respec_server.device import cuda_devices
from sglang_respec.errors import RespecError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
README = ROOT / "README.md"
MARKERS = ("<!-- bench:begin -->", "<!-- bench:end -->")
PACKAGES = ("sglang-respec", "sglang", "torch", "transformers")
CODE = ("sglang_respec", "kernels", "server", "scripts")


@dataclass(frozen=True)
class Spread:
    """The middle of repeated measurements and the smallest and largest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Bars:
    """One colour of a grouped bar chart; None where a group has no bar of it."""

    name: str
    colour: str
    heights: Sequence[Spread | None]  # one per group
    notes: Sequence[str]  # one per group, written above the bar


def paired_ratios(
    values: Mapping[str, Mapping[int, float]], baseline: str
) -> dict[str, dict[int, float]]:
    """Each value over the baseline's value of the same round.

    values: {who: {round: value}}. Machines drift, so a ratio never crosses two rounds; a round
    that the baseline or the other lacks gives none.
    """
    base = values[baseline]
    return {
        who: {each: value / base[each] for each, value in rounds.items() if each in base}
        for who, rounds in values.items()
    }


def machine_facts() -> dict[str, Any]:
    """What the figures depend on and cannot be read from the code."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages * page_bytes / 2**30, 1),
        "gpus": gpu_names(),
        "load_average_at_start": [round(each, 2) for each in os.getloadavg()],
    }


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def gpu_names() -> list[str]:
    if cuda_devices()[0] == 0:
        return []
    answer = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def version_facts() -> dict[str, str]:
    facts = {"python": platform.python_version()}
    facts |= {name: importlib.metadata.version(name) for name in PACKAGES}
    return facts | {"commit": commit()}


def commit() -> str:
    """The commit of the checkout, with a + if code was changed since; "unknown" outside git."""
    head = _git("rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    return head + ("+" if _git("status", "--porcelain", "--", *CODE) else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def result_path(stem: str) -> Path:
    """docs/results/<stem>_cpu.json, or with the name of the first GPU."""
    gpus = gpu_names()
    where = re.sub(r"[^a-z0-9]+", "-", gpus[0].lower()).strip("-") if gpus else "cpu"
    return RESULTS / f"{stem}_{where}.json"


def public_text(text: str) -> str:
    """A text with each absolute path shown from the repository's root, else by its last part."""
    text = text.replace(f"{ROOT}/", "")
    return re.sub(r"(?<![\w.~:/])/(?:[^\s,='\"/]+/)*([^\s,='\"/]+)", r"\1", text)


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RespecError(f"{path} cannot be read as JSON ({error}); give a result.") from error
    if not isinstance(result, dict):
        raise RespecError(f"{path} holds no result; give a file that a benchmark wrote.")
    return result


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are figures."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def insert_section(readme: Path, body: str, markers: tuple[str, str] = MARKERS) -> None:
    """Replace what stands between the two marker lines of a document."""
    text = readme.read_text(encoding="utf-8")
    begin, end = markers
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise RespecError(f"{readme.name} needs the lines {begin} and {end}, each once; add them.")
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    readme.write_text(f"{head}{begin}\n{body.strip()}\n{end}{tail}", encoding="utf-8")


def plot_grouped_bars(
    path: Path, *, title: str, value: str, groups: Sequence[str], series: Sequence[Bars]
) -> None:
    """Bars with a line from the smallest to the largest measurement, and a line at 1."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.4), dpi=150, layout="constrained")
    width = 0.84 / max(1, len(series))
    top = 1.0
    for index, bars in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * width
        found = [(group, each) for group, each in enumerate(bars.heights) if each is not None]
        errors = [
            [each.median - each.low for _, each in found],
            [each.high - each.median for _, each in found],
        ]
        axes.bar(
            [group + shift for group, _ in found],
            [each.median for _, each in found],
            width * 0.92,
            yerr=errors,
            color=bars.colour,
            label=bars.name,
            error_kw={"elinewidth": 0.9, "ecolor": "#333333"},
        )
        for group, each in found:
            top = max(top, each.high)
            if bars.notes[group]:
                axes.annotate(
                    bars.notes[group],
                    (group + shift, each.high),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7.5,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0},
                )
    axes.axhline(1.0, color="#333333", linewidth=0.8, zorder=0.5)
    axes.set_ylim(0, top * 1.1)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(value)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No software version and no date in the file: the same figures give the same bytes.
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
