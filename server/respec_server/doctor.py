"""`respec doctor`: is this machine and this installation fit to serve?"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from respec_server.bundled import demo_models
from respec_server.device import cuda_devices
from respec_server.hook_check import MARK
from sglang_respec.config import CONFIG_ENV, enabled, load_config
from sglang_respec.drafter.fit import check_drafter_fits
from sglang_respec.errors import RespecError
from sglang_respec.refusals import SGLANG_VERSION, refuse_unsupported

PACKAGES = ("sglang-respec", "sglang", "torch", "triton", "flashinfer-python", "transformers")
ENTRY_POINTS = {
    ("sglang.srt.plugins", "respec"): "sglang_respec.plugin:register",
    ("sglang.srt.platforms", "respec_portable"): "sglang_respec.plugin:platform",
}
MIN_PYTHON = (3, 11)
HOOK_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Check:
    """One row. ``remedy`` is said when it fails."""

    name: str
    passed: bool
    detail: str
    remedy: str = ""


def versions() -> list[tuple[str, str]]:
    """Versions of Python and of the packages that matter, without importing any."""
    rows = [("python", ".".join(str(part) for part in sys.version_info[:3]))]
    return rows + [(name, _version(name) or "missing") for name in PACKAGES]


def run_doctor(*, quick: bool = False) -> int:
    """Print every check; 1 if one fails."""
    console = Console(soft_wrap=True)
    checks = list(quick_checks())
    if not quick and all(check.passed for check in checks):
        with console.status("Importing SGLang and entering the hooks (half a minute) ..."):
            checks += hook_checks()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        mark = "[green]ok[/]" if check.passed else "[red]FAIL[/]"
        table.add_row(mark, check.name, check.detail)
    console.print(table)
    failed = [check for check in checks if not check.passed]
    for check in failed:
        console.print(f"\n[red]{check.name}[/]: {check.remedy}", highlight=False)
    if failed and not quick:
        console.print("\nThe hooks are checked once the rest is in order.", style="dim")
    elif quick:
        console.print("\n--quick: the hooks in SGLang were not checked.", style="dim")
    return 1 if failed else 0


def quick_checks() -> Iterator[Check]:
    """What can be known in a second."""
    for name, version in versions():
        yield _package(name, version)
    yield _device()
    yield from _entry_points()
    yield _attempt("environment", "nothing in it turns the extension off", _environment)
    yield _attempt("settings", os.environ.get(CONFIG_ENV) or "defaults", load_config)
    yield _attempt("bundled models", "drafter fits target", _bundled_models)


def hook_checks() -> list[Check]:
    """Enter the hooks into SGLang in a process of its own; one row for each."""
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "respec_server.hook_check"],
            capture_output=True,
            text=True,
            timeout=HOOK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        remedy = "Run `python -m respec_server.hook_check` to see where it stays."
        return [Check("hooks", False, f"no answer in {HOOK_TIMEOUT_S:.0f} s", remedy)]
    lines = [line for line in answer.stdout.splitlines() if line.startswith(MARK)]
    if answer.returncode or not lines:
        last = (answer.stderr.strip() or answer.stdout.strip() or "no output").splitlines()[-1]
        remedy = "Run `python -m respec_server.hook_check` to see the whole error."
        return [Check("hooks", False, last, remedy)]
    return [
        Check(
            f"hook {status['name']}",
            status["landed"],
            ".".join(status["target"].split(".")[-2:]),
            f"{status['reason']}. Remove other SGLang plugins, or install SGLang {SGLANG_VERSION}.",
        )
        for status in json.loads(lines[-1].removeprefix(MARK))
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, version: str) -> Check:
    remedy = "Run `make install`, which installs the pinned set."
    if name == "python":
        wanted = ".".join(str(part) for part in MIN_PYTHON)
        return Check(
            name, sys.version_info >= MIN_PYTHON, version, f"Python {wanted} or newer is needed."
        )
    passed = version == SGLANG_VERSION if name == "sglang" else version != "missing"
    return Check(name, passed, version, remedy)


def _device() -> Check:
    count, driver = cuda_devices()
    if count:
        return Check("device", True, f"{count} CUDA device(s), driver for CUDA {driver}")
    return Check(
        "device", True, f"no CUDA device: the portable platform serves on {os.cpu_count()} cores"
    )


def _entry_points() -> Iterator[Check]:
    for (group, name), value in ENTRY_POINTS.items():
        found = importlib.metadata.entry_points(group=group, name=name)
        passed = [each.value for each in found] == [value]
        detail = ", ".join(each.value for each in found) or "not found"
        remedy = f"SGLang must find exactly one {name} in {group}; run `make install` again."
        yield Check(f"plugin {name}", passed, detail, remedy)


def _environment() -> None:
    if not enabled():
        raise RespecError("SGLANG_RESPEC turns the extension off; unset it to use it.")
    refuse_unsupported({}, os.environ)


def _bundled_models() -> None:
    check_drafter_fits(*demo_models())


def _attempt(name: str, detail: str, check: object) -> Check:
    assert callable(check)
    try:
        check()
    except RespecError as error:
        return Check(name, False, "see below", str(error))
    return Check(name, True, detail)
