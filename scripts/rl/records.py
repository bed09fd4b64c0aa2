"""What is written down of a run, and where; needs no torch.

One file per arm and seed, written when that run has ended, in a folder of these settings: a demo
that was interrupted goes on with the runs that are missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to make the rollouts. ``weight``: the learner's w(r), None without a learner."""

    name: str
    speculates: bool
    weight: str | None = None


ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", speculates=False),
        Arm("frozen", speculates=True),
        Arm("learner", speculates=True, weight="none"),
        Arm("learner-reward", speculates=True, weight="reward"),
        Arm("learner-advantage", speculates=True, weight="advantage"),
        Arm("learner-length", speculates=True, weight="length"),
    )
}
DEMO_ARMS = ("plain", "frozen", "learner", "learner-reward")
ABLATION_ARMS = tuple(arm.name for arm in ARMS.values() if arm.weight)


@dataclass(frozen=True)
class Settings:
    """What a run depends on besides its arm and seed."""

    steps: int
    prompts: int  # per step
    samples: int  # per prompt
    max_steps: int  # of a problem
    max_new_tokens: int
    concurrency: int  # requests that run at a time
    learning_rate: float  # of the policy
    epochs: int
    clip: float
    learner: dict[str, str]  # flags of `respec learn` without their dashes

    @property
    def rollouts(self) -> int:
        return self.prompts * self.samples

    @property
    def digest(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class StepRecord:
    """One policy step: rollouts, their rewards, one update, one synchronisation."""

    step: int
    reward: float  # mean over the rollouts, as are the next two
    right: float
    style: float
    tokens: int  # generated
    committed: int  # of them by verify passes; 0 in plain decoding
    verifies: int
    digest: str  # of every rollout's tokens
    grad_norm: float
    drafter_version: int | None  # that served when the rollouts were done
    learner_updates: int | None
    rollout_s: float
    train_s: float
    sync_s: float
    learner_cpu_s: float  # since the step before; the learner works beside everything

    @property
    def accepted_length(self) -> float | None:
        """Tokens committed per verify, bonus included; None in plain decoding."""
        return self.committed / self.verifies if self.verifies else None

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.rollout_s


@dataclass(frozen=True)
class ArmRun:
    """All steps of one arm with one seed."""

    arm: str
    seed: int
    settings: Settings
    facts: dict[str, Any]  # versions and commit
    seconds: float  # of all steps; starting and stopping processes left out
    steps: list[StepRecord]


def tokens_digest(token_lists: Sequence[Sequence[int]]) -> str:
    """Equal only where every rollout has the same tokens, in the same order."""
    text = ";".join(",".join(map(str, tokens)) for tokens in token_lists)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def run_path(folder: Path, settings: Settings, arm: str, seed: int) -> Path:
    return folder / settings.digest / f"{arm}-seed{seed}.json"


def save_run(path: Path, run: ArmRun) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(dataclasses.asdict(run), indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)  # noqa: PTH105 (the atomic one, by its usual name)


def run_of(found: dict[str, Any]) -> ArmRun:
    """Of what `save_run` wrote."""
    settings = Settings(**found["settings"])
    steps = [StepRecord(**each) for each in found["steps"]]
    return ArmRun(**{**found, "settings": settings, "steps": steps})


def load_run(path: Path) -> ArmRun | None:
    """None where that run has not ended yet."""
    if not path.is_file():
        return None
    return run_of(json.loads(path.read_text(encoding="utf-8")))
