"""Reads what a server wrote down of its decode steps, with the setting step_log."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepLog:
    """The steps since the log was last looked at."""

    steps: list[dict[str, Any]]

    @property
    def configs(self) -> set[str]:
        return {step["config"] for step in self.steps}

    @property
    def verifies(self) -> list[dict[str, Any]]:
        return [step for step in self.steps if step["config"] != "0,1,1"]

    @property
    def accepted_length(self) -> float:
        """Tokens committed per request and verify, plain steps left out."""
        return mean_accepted(self.verifies)

    @property
    def catch_up_tokens(self) -> int:
        return sum(int(step["catch_up_tokens"]) for step in self.steps)


def mean_accepted(verifies: Iterable[dict[str, Any]]) -> float:
    steps = list(verifies)
    return sum(s["tokens_committed"] for s in steps) / sum(s["batch_size"] for s in steps)


class StepLogFile:
    """One server's log, read piece by piece."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    @property
    def flags(self) -> list[str]:
        return ["--respec-step-log", str(self.path)]

    def new_steps(self) -> StepLog:
        with self.path.open(encoding="utf-8") as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        return StepLog([json.loads(line) for line in lines])
