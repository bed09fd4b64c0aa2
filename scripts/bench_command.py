"""What benchmarks that drive servers share as commands: options, models, files, how they end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import bench_report
import httpx
from bench_servers import ServerSpec

from respec_server.device import cuda_devices
from sglang_respec.config import CONFIG_ENV, RespecConfig
from sglang_respec.errors import RespecError

Result = dict[str, Any]
T = TypeVar("T")


class Report(Protocol):
    """A module that shows results of one kind."""

    def plot(self, path: Path, result: Result) -> None: ...

    def section(self, result: Result, image: str | None) -> str: ...

    def update_readme(self, readme: Path, result: Result, image: Path) -> None: ...


def measure_and_show(
    options: argparse.Namespace,
    run: Callable[[argparse.Namespace], Result],
    report: Report,
    name: str,
    logs: Path,
) -> int:
    """Measure, or read an earlier result (`options.source`), write, plot, print. Returns the
    command's exit code."""
    # Told to end, end in order: the servers are children of ours and must not outlive us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if options.source:
            path, result = options.source, bench_report.read_json(options.source)
        else:
            path = options.out or default_out(name, logs, options.quick)
            result = run(options)
            bench_report.write_json(path, result)
        image = path.with_suffix(".png")
        report.plot(image, result)
        print(f"\n{report.section(result, None)}\n\n{path}\n{image}")
        if options.update_readme:
            report.update_readme(options.update_readme, result, image)
            print(options.update_readme)
    except RespecError as error:
        sys.stderr.write(f"bench_{name}: {error}\n")
        return 1
    except httpx.HTTPError as error:
        sys.stderr.write(f"bench_{name}: a server lost a request ({error!r}); logs: {logs}\n")
        return 1
    return 0


def measure_and_tell(
    options: argparse.Namespace,
    run: Callable[[argparse.Namespace], Result],
    told: Callable[[Result], str],
    name: str,
    command: str,
) -> int:
    """Measure, write, print what is told of the result. Returns the command's exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        result = run(options)
    except (RespecError, httpx.HTTPError) as error:
        sys.stderr.write(f"{command}: {error}\n")
        return 1
    path = options.out or bench_report.result_path(name)
    bench_report.write_json(path, result)
    print(f"\n{told(result)}\n\n{path}")
    return 0


def default_out(name: str, logs: Path, quick: bool) -> Path:
    """A trial is no result, so it goes where git does not look."""
    path = bench_report.result_path(name)
    return logs / path.name if quick else path


def use_demo_settings(options: argparse.Namespace, logs: Path) -> None:
    """The bundled models are served as the demo serves them; see `settle_threads`."""
    logs.mkdir(parents=True, exist_ok=True)
    if not options.model_path:
        settle_threads(logs)


def settle_threads(logs: Path) -> None:
    """On a CPU servers started from here run on one torch thread, unless settings say more."""
    logs.mkdir(parents=True, exist_ok=True)
    if cuda_devices()[0] or os.environ.get(CONFIG_ENV):
        return
    settings = logs / "respec.toml"
    settings.write_text(RespecConfig(portable_threads=1).to_toml(), encoding="utf-8")
    os.environ[CONFIG_ENV] = str(settings)


def describe_models(options: argparse.Namespace) -> str:
    if options.model_path:
        drafter = Path(options.drafter_path).name if options.drafter_path else "no drafter"
        return f"{Path(options.model_path).name} with {drafter}"
    return "the bundled models" + ("" if cuda_devices()[0] else " in float32")


def choose(specs: Sequence[ServerSpec], only: Sequence[str], always: str) -> list[ServerSpec]:
    """The servers whose names contain one of these texts, and the one to compare with."""
    for text in only:
        if not any(text in each.name for each in specs):
            names = ", ".join(repr(each.name) for each in specs)
            raise RespecError(f"No server's name contains {text!r}; there are {names}.")
    return [
        each
        for each in specs
        if not only or each.name == always or any(text in each.name for text in only)
    ]


def measurements_of(kind: type[T], result: Mapping[str, Any], script: str) -> list[T]:
    """The measurements of a result file of that script, as instances of a dataclass."""
    fields = kind.__dataclass_fields__  # type: ignore[attr-defined]
    try:
        return [kind(**{name: each[name] for name in fields}) for each in result["measurements"]]
    except (KeyError, TypeError) as error:
        raise RespecError(f"This is no result of {script} ({error}); give one.") from error


def positive(text: str) -> int:
    """An argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def numbers(text: str) -> tuple[int, ...]:
    """An argument that lists numbers: ``1,16,64``."""
    return tuple(positive(each) for each in text.split(","))
