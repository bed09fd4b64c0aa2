"""Checkpoints on disk: each is there whole or not at all, whenever the process is killed.

    step-00000120/
      model.safetensors  config.json    the drafter as it is pushed and served, bfloat16
      trainer.safetensors               parameters in float32 and the optimiser's moments
      state.json                        the rest

A checkpoint is written in a folder of another name, synced, and renamed. It is made before its
weights are published, so what a server serves can always be found here by its hash.
"""

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sglang_respec.errors import RespecError
from sglang_respec.learner.checkpoint import CONFIG_FILE, WEIGHTS_FILE, save_drafter
from sglang_respec.learner.eagle3 import Eagle3Drafter

TRAINER_FILE, STATE_FILE = "trainer.safetensors", "state.json"
PREFIX, PARTIAL_PREFIX = "step-", ".partial-"


@dataclass(frozen=True)
class LearnerState:
    """What is remembered besides tensors."""

    step: int
    sha256: str  # of model.safetensors
    base_version: int  # the server's version when this was made
    serving_sha256: str  # of the weights that served then; empty for the server's first drafter
    reference_length: float | None  # what they accepted when they began to serve
    last_publish_step: int


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    state: LearnerState

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS_FILE

    def trainer_tensors(self) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = load_file(self.folder / TRAINER_FILE)
        except (OSError, SafetensorError) as error:
            raise RespecError(
                f"{self.folder} cannot be read ({error}); remove it to go on from the one before."
            ) from error
        return tensors


class CheckpointStore:
    """The checkpoints of one learner; one process at a time writes here."""

    def __init__(self, folder: Path, keep: int) -> None:
        """keep: newest checkpoints that stay, besides one that serves."""
        self.folder, self._keep = folder, keep
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{PARTIAL_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)

    def save(
        self,
        drafter: Eagle3Drafter,
        trainer: dict[str, Tensor],
        *,
        step: int,
        base_version: int,
        serving_sha256: str,
        reference_length: float | None,
        last_publish_step: int,
        in_flight: str = "",
    ) -> Checkpoint:
        """Write one, remove the oldest. One of the same step is there already and stays.

        in_flight: hash of weights that are being pushed; like those that serve, they stay.
        """
        final = self.folder / f"{PREFIX}{step:08d}"
        if (final / STATE_FILE).exists():
            return _read(final)
        partial = self.folder / f"{PARTIAL_PREFIX}{uuid.uuid4().hex}"
        save_drafter(drafter, partial)
        save_file(trainer, partial / TRAINER_FILE)
        state = LearnerState(
            step, sha256_of(partial / WEIGHTS_FILE), base_version, serving_sha256,
            reference_length, last_publish_step,
        )  # fmt: skip
        text = json.dumps(asdict(state), indent=2) + "\n"
        (partial / STATE_FILE).write_text(text, encoding="utf-8")
        for name in (WEIGHTS_FILE, CONFIG_FILE, TRAINER_FILE, STATE_FILE):
            _sync(partial / name)
        _sync(partial)
        partial.replace(final)
        _sync(self.folder)
        self._prune({serving_sha256, in_flight})
        return Checkpoint(final, state)

    def latest(self) -> Checkpoint | None:
        """The newest one. Raises `RespecError` where somebody altered it."""
        folders = self._folders()
        return _read(folders[-1]) if folders else None

    def find(self, sha256: str) -> Checkpoint | None:
        """The one whose weights have this hash, if it is still here."""
        found = (each for each in map(_read, reversed(self._folders())))
        return next((each for each in found if each.state.sha256 == sha256), None)

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob(f"{PREFIX}*"))

    def _prune(self, needed: set[str]) -> None:
        for folder in self._folders()[: -self._keep]:
            if _read(folder).state.sha256 in needed:
                continue
            # Out of the way first: half a checkpoint must not be found under its name.
            doomed = self.folder / f"{PARTIAL_PREFIX}{uuid.uuid4().hex}"
            folder.replace(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path) -> Checkpoint:
    try:
        raw = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        return Checkpoint(folder, LearnerState(**raw))
    except (OSError, ValueError, TypeError) as error:
        raise RespecError(
            f"The checkpoint {folder} cannot be read ({error}); remove it to go on from the one "
            "before."
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
