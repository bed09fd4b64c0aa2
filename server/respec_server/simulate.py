"""`respec simulate`: policies against the oracle on simulated loads, with no model and no GPU."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang_respec.core import SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.contest import (
    BUNDLED,
    CONFIGS,
    SGLANG,
    SGLANG_ZERO,
    contest,
    load_profile,
    policy_names,
)
from sglang_respec.planner.policy import Policy
from sglang_respec.planner.profile import KINDS
from sglang_respec.planner.traces import TRACES, make_trace

HEAD = (
    "policy",
    "% of oracle",
    "(low..high)",
    "same batches",
    "x plain",
    "switches/1000",
    "decide us",
)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="respec simulate",
        description="Replay loads against policies on a simulated machine and compare them with an "
        "oracle that knows the hidden truth. Each option may be given several times.",
    )
    made.add_argument("--trace", action="append", help=f"{', '.join(TRACES)} (all)")
    made.add_argument(
        "--policy",
        action="append",
        help=f"{', '.join(policy_names())}, or fuzz (all but fuzz); SGLang's takes some seconds "
        "to import",
    )
    made.add_argument(
        "--profile", action="append", help=f"a file, or {' or '.join(BUNDLED)} (both)"
    )
    made.add_argument("--seeds", type=int, default=3, help="runs of each, with a spread (3)")
    made.add_argument("--json", metavar="FILE", help="write every figure here")
    made.add_argument("--plot", metavar="FILE", help="draw throughput over the oracle's (a PNG)")
    return made


def simulate(arguments: Sequence[str]) -> int:
    """Run what the arguments name and print one table per profile and trace."""
    options = parser().parse_args(arguments)
    if options.seeds < 1:
        raise RespecError(f"--seeds must be 1 or more, not {options.seeds}.")
    profiles, traces = options.profile or list(BUNDLED), options.trace or list(TRACES)
    policies = options.policy or policy_names()
    _check(profiles, traces, policies)
    make_sglang = sglang_policy if {SGLANG, SGLANG_ZERO} & set(policies) else None
    rows = []
    for row in contest(profiles, traces, policies, range(options.seeds), make_sglang):
        rows.append(row)
        sys.stdout.write(render(row))
        sys.stdout.flush()
    document = describe(profiles, rows)
    if options.json:
        _write(options.json, json.dumps(document, indent=1) + "\n")
    if options.plot:
        plot(document, options.plot)
    return 0


def describe(profiles: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The JSON document: what was simulated on what, and the rows."""
    loaded = {name: load_profile(name) for name in profiles}
    return {
        "what": "throughput of policies over an oracle's, simulated; decision times are measured",
        "profiles": {
            name: {
                "kind": each.kind,
                "kind_meaning": KINDS[each.kind],
                "source": each.source,
                "held_out_relative_error": each.relative_error,
            }
            for name, each in loaded.items()
        },
        "configs": ["plain", *(str(config) for config in CONFIGS)],
        "rows": list(rows),
    }


def render(row: dict[str, Any]) -> str:
    """One profile and trace as a table, the best policy first."""
    lines = [f"\n{row['trace']} on {row['profile']}: {row['meaning']}; {row['tokens']} tokens"]
    lines.append("".join(f"{head:>16}" for head in HEAD))
    ranked = sorted(row["policies"].items(), key=lambda item: -item[1]["of_oracle"]["median"])
    for name, figures in ranked:
        share = figures["of_oracle"]
        cells = (
            name,
            f"{100 * share['median']:.1f}",
            f"({100 * share['low']:.1f}..{100 * share['high']:.1f})",
            f"{100 * figures['of_oracle_own_batches']['median']:.1f}",
            f"{figures['over_plain']['median']:.3f}",
            f"{figures['switches_per_1000']['median']:.0f}",
            f"{figures['decide_us_median']['median']:.0f}",
        )
        lines.append("".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines) + "\n"


def plot(document: dict[str, Any], path: str) -> None:
    """Bars of throughput over the oracle's, one panel per profile, one group per trace."""
    try:
        import matplotlib
    except ImportError as error:
        raise RespecError("--plot needs matplotlib; install it, or take --json instead.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    profiles = list(document["profiles"])
    figure, axes = pyplot.subplots(
        len(profiles), 1, figsize=(13, 4.2 * len(profiles)), squeeze=False
    )
    for axis, profile in zip(axes[:, 0], profiles, strict=True):
        rows = [row for row in document["rows"] if row["profile"] == profile]
        names = _drawn(rows)
        width = 0.8 / len(names)
        for place, name in enumerate(names):
            shares = [_share(row, name) for row in rows]
            axis.bar(
                [group + place * width for group in range(len(rows))],
                [100 * share["median"] for share in shares],
                width,
                yerr=[
                    [100 * (share["median"] - share["low"]) for share in shares],
                    [100 * (share["high"] - share["median"]) for share in shares],
                ],
                label=name,
                color=f"C{place}",
                error_kw={"linewidth": 0.8},
            )
        axis.axhline(97, color="black", linewidth=0.6, linestyle=":")
        axis.set_xticks([g + 0.4 - width / 2 for g in range(len(rows))], [r["trace"] for r in rows])
        axis.set_ylabel("% of the oracle's tokens/s")
        kind = document["profiles"][profile]["kind"]
        axis.set_title(f"{profile} (step times {kind}); dotted: 97 %", fontsize=10)
        axis.set_ylim(0, 110)
        axis.legend(ncols=len(names), fontsize=8, loc="lower center")
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise RespecError(f"{path} cannot be written ({error.strerror}).") from error


def _drawn(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The policies, all single configurations taken together as the best of them."""
    names = [name for name in rows[0]["policies"] if not name.startswith("always:")]
    return names + (["best static"] if len(names) < len(rows[0]["policies"]) else [])


def _share(row: dict[str, Any], name: str) -> dict[str, float]:
    if name != "best static":
        share: dict[str, float] = row["policies"][name]["of_oracle"]
        return share
    static = [f["of_oracle"] for n, f in row["policies"].items() if n.startswith("always:")]
    return max(static, key=lambda share: share["median"])


def _check(profiles: Sequence[str], traces: Sequence[str], policies: Sequence[str]) -> None:
    """Refuse a misspelt name before minutes are spent on the others."""
    known = [*policy_names(), "fuzz"]
    for name in policies:
        if name not in known:
            raise RespecError(f"There is no policy {name!r}; it is one of {', '.join(known)}.")
    for name in traces:
        make_trace(name, 0)
    for name in profiles:
        load_profile(name)


def sglang_policy(configs: Sequence[SpeculationConfig]) -> Policy:
    """SGLang's own policy; the first call imports SGLang, which takes some seconds."""
    from sglang_respec.upstream.adaptive import SglangAdaptive

    return SglangAdaptive(configs)


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise RespecError(f"{path} cannot be written ({error.strerror}).") from error
