"""`respec push`: a drafter's weights from a file or a folder to running servers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from respec_server.client import DrafterClient, PushFailed, PushReport
from respec_server.client import Progress as OnProgress
from respec_server.refusal import SHOWN_PROBLEMS
from sglang_respec.errors import RespecError


def run_push(
    weights: str | None,
    urls: Sequence[str],
    *,
    admin_key: str | None,
    server_path: str | None = None,
    label: str = "",
    base_version: int | None = None,
    dry_run: bool = False,
    guard: bool = True,
) -> int:
    """Push and show what each server answered; 1 if any did not take it."""
    if (weights is None) == (server_path is None):
        raise RespecError("Give a file or folder to send, or --server-path of one that is there.")
    client = DrafterClient(urls, admin_key)
    try:
        if weights is None:
            assert server_path is not None
            report = client.push_path(server_path, label=label, dry_run=dry_run, guard=guard)
        else:
            _must_exist(Path(weights))
            with _progress_bars(urls) as progress:
                report = client.push(
                    weights, label=label, base_version=base_version, dry_run=dry_run, guard=guard,
                    progress=progress,
                )  # fmt: skip
    except PushFailed as error:
        _show(error.report)
        for url, why in error.report.failed.items():
            sys.stderr.write(f"respec: {url}: {why}\n")
            for each in why.problems[SHOWN_PROBLEMS:]:  # the first ones are in the sentence
                sys.stderr.write(f"  {each['tensor']} {each['problem']}\n")
        return 1
    _show(report)
    return 0


def _must_exist(path: Path) -> None:
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise RespecError(f"There is no file {file}; give a safetensors file or its folder.")


@contextlib.contextmanager
def _progress_bars(urls: Sequence[str]) -> Iterator[OnProgress | None]:
    """A bar per server, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
               TransferSpeedColumn())  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks = {url.rstrip("/"): bars.add_task(url, total=None) for url in urls}
        yield lambda url, sent, total: bars.update(tasks[url], completed=sent, total=total)


def _show(report: PushReport) -> None:
    if not report.applied:
        return
    table = Table(box=None, pad_edge=False)
    for name in ("server", "result", "version", "receive", "check", "stage", "pause"):
        table.add_column(name, justify="left" if name in ("server", "result") else "right")
    for url, answer in report.applied.items():
        phases = [f"{value:.1f} ms" for value in answer["phases"].values()]
        table.add_row(url, answer["status"], str(answer["version"]), *phases)
    Console(soft_wrap=True).print(table)
    for url, answer in report.applied.items():
        if answer["ignored"]:
            names = ", ".join(answer["ignored"])
            sys.stdout.write(f"{url}: left alone, since they are the target's own: {names}\n")
