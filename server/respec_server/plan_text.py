"""The answers of `/respec/plan` and `/respec/state` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

PLAIN = "0,1,1"
SHOWN_SWITCHES = 5
State = Mapping[str, Any]


def config_name(config: str) -> str:
    return "plain" if config == PLAIN else config


def plan_tables(state: State, plan: Mapping[str, Any], earlier: State | None = None) -> Group:
    """What runs and why, each configuration, the last changes.

    earlier: an older state of the same server; then shares and rates are of the time since.
    """
    since = earlier if earlier and earlier["uptime_s"] < state["uptime_s"] else None
    parts: list[Any] = [_facts(state, plan), Text(), _configs(state, plan, since)]
    if plan["last_switches"]:
        parts += [Text(), _switches(plan, state)]
    return Group(*parts)


def _facts(state: State, plan: Mapping[str, Any]) -> Table:
    ring = state["tap"]["ring_bytes"] / 2**20
    profile = state["profile"]
    depths = [each["acceptance"] for each in state["depths"]]
    decisions = state["decision_us"]
    rows = [
        ("policy", f"{plan['setting']}; holds {', '.join(map(config_name, state['held']))}"),
        ("now", f"{config_name(plan['current'])}: {plan['reason_meaning']}"),
        ("changes", f"{state['switches']}, {state['switches_per_1000_steps']:.1f} per 1,000 steps"),
        ("catch-ups", f"{state['catch_ups']} over {state['catch_up_tokens']} tokens"),
        ("acceptance", "  ".join(_percent(each) for each in depths) + "  by depth"
         if depths else "-"),
        ("decision", f"{decisions['p50']:.0f} us, 99th percentile {decisions['p99']:.0f} us"
         if decisions else "-"),
        ("profile", "none" if profile is None else _profile(profile)),
        ("ring", f"{ring:.1f} MiB"),
        ("drafter", f"version {state['drafter_version']}"),
    ]  # fmt: skip
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", Text(value))
    return table


def _profile(profile: Mapping[str, Any]) -> str:
    error = profile["held_out_relative_error"]
    off = "" if error is None else f", {error:.1%} off where it was held out"
    where = f"{profile['path']}, " if profile["path"] else ""
    return f"{where}{profile['kind']}{off}"


def _configs(state: State, plan: Mapping[str, Any], earlier: State | None) -> Table:
    """Times are means since the start; share, steps and tokens/s since `earlier`."""
    table = Table(box=None, pad_edge=False)
    heads = ("config", "time", "steps", "tokens/s", "accepted", "step", "predicted", "off", "plan")
    for name in heads:
        table.add_column(name, justify="left" if name == "config" else "right")
    old = {} if earlier is None else {each["config"]: each for each in earlier["configs"]}
    recent = [_since(each, old.get(each["config"])) for each in state["configs"]]
    busy = sum(each["busy_s"] for each in recent)
    believed = _believed(plan)
    for each, new in zip(state["configs"], recent, strict=True):
        now = each["config"] == state["current"]
        table.add_row(
            config_name(each["config"]),
            _percent(new["busy_s"] / busy if busy else None),
            str(new["steps"]),
            # Tokens of steps whose time is not known are left out by their part of the steps.
            _rate(new),
            "-" if each["accepted_length"] is None else f"{each['accepted_length']:.2f}",
            _ms(each["step_s"]),
            _ms(each["predicted_step_s"]),
            _percent(each["prediction_error"]),
            believed.get(each["config"], "-"),
            style="bold" if now else "",
        )
    return table


def _since(new: Mapping[str, Any], old: Mapping[str, Any] | None) -> dict[str, float]:
    fields = ("busy_s", "steps", "tokens", "measured_steps", "measured_s")
    return {name: new[name] - (old[name] if old else 0) for name in fields}


def _rate(counts: Mapping[str, float]) -> str:
    if not counts["measured_steps"] or not counts["steps"]:
        return "-"
    per_step = counts["tokens"] / counts["steps"]
    return f"{per_step * counts['measured_steps'] / counts['measured_s']:.0f}"


def _believed(plan: Mapping[str, Any]) -> dict[str, str]:
    """Tokens/s of each configuration at the last batch's size, by the policy's own table."""
    row = next((row for row in plan["rows"] if row["batch_size"] == plan["batch_size"]), None)
    cells = row["configs"] if row else []
    return {each["config"]: f"{each['tokens_per_s']:.0f}" for each in cells}


def _switches(plan: Mapping[str, Any], state: State) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("last changes", "steps ago", "batch", "context", "reason"):
        table.add_column(name, justify="left" if name in ("last changes", "reason") else "right")
    for each in plan["last_switches"][:SHOWN_SWITCHES]:
        table.add_row(
            f"{config_name(each['before'])} to {config_name(each['after'])}",
            str(max(0, state["steps"] - each["step"])),
            str(each["batch_size"]),
            f"{each['mean_context_tokens']:.0f}",
            each["reason"],
        )
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"
