"""What happened, one JSON object a line, and the curves drawn from it. Needs no torch."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from sglang_respec.errors import RespecError


class Journal:
    """Appends lines ``{"event": ..., "at": seconds since the epoch, ...}``; any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        self._file = path.open("a", encoding="utf-8")
        if torn:  # by a kill; the line stays unreadable and the next one is whole
            self._file.write("\n")

    def write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, "at": round(time.time(), 3), **fields})
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()


def read_journal(path: Path | str) -> list[dict[str, Any]]:
    """All whole lines. Raises `RespecError` where there is no journal."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RespecError(
            f"The journal {path} cannot be read ({error}); it lies in the learner's --output."
        ) from error
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def plot_journal(path: Path | str, picture: Path | str) -> None:
    """Loss, acceptance and pushes against updates. Raises `RespecError` without matplotlib."""
    events = read_journal(path)
    trained = [each for each in events if each["event"] == "update"]
    judged = [each for each in events if each["event"] == "judged"]
    pushed = [each["step"] for each in events if each["event"] == "published"]
    if not trained:
        raise RespecError(f"The journal {path} has no updates yet; let the learner run first.")
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise RespecError("Curves need matplotlib; install it with pip.") from error
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 7))
    above.plot([e["step"] for e in trained], [e["loss"] for e in trained], label="loss")
    for depth in range(len(trained[0]["kl"])):
        above.plot(
            [e["step"] for e in trained], [e["kl"][depth] for e in trained],
            linewidth=0.8, alpha=0.6, label=f"KL of chain step {depth + 1}",
        )  # fmt: skip
    above.set_ylabel("nats per token")
    steps = [e["step"] for e in judged]
    below.plot(steps, [e["candidate"] for e in judged], marker=".", label="candidate")
    below.plot(steps, [e["serving"] for e in judged], marker=".", label="serving")
    for step in pushed:
        below.axvline(step, color="grey", linewidth=0.8, linestyle=":")
    below.set_ylabel("held-out tokens per verify")
    below.set_xlabel("updates (dotted: pushed)")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
