"""Keeps what servers answered, so that a check of hours goes on where it was interrupted.

One file per server and part of its requests, named by what was asked of whom. The commit that
answered is kept beside the answers: a report names every commit it rests on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_report import public_text
from bench_servers import ServerSpec
from rollouts import Batch, Rollout

_META = ("spec_verify_ct",)  # what a Batch counts by


@dataclass(frozen=True)
class Kept:
    """The answers to one part of the requests. samples: per request, its rollouts."""

    samples: list[list[Rollout]]
    seconds: float
    commit: str


class AnswerStore:
    """The kept answers of one server to one list of requests."""

    def __init__(self, root: Path, server: ServerSpec, asked: Any) -> None:
        """asked: all prompts and parameters, in JSON's types. Another question, another folder."""
        identity = json.dumps([public_text(" ".join(server.flags)), asked], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._folder = root / f"{server.name.replace(' ', '-')}-{digest}"

    def load(self, part: Sequence[int]) -> Kept | None:
        """What was answered to the requests of these indices, or None."""
        path = self._path(part)
        if not path.exists():
            return None
        kept = json.loads(path.read_text())
        samples = [
            [Rollout(tuple(ids), "", dict(zip(_META, meta, strict=True))) for ids, meta in each]
            for each in kept["samples"]
        ]
        return Kept(samples, kept["seconds"], kept["commit"])

    def save(self, part: Sequence[int], kept: Kept) -> None:
        """Whole or not at all: an interrupted write leaves no file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        samples = [
            [(each.output_ids, [each.meta.get(name) for name in _META]) for each in request]
            for request in kept.samples
        ]
        text = json.dumps({"commit": kept.commit, "seconds": kept.seconds, "samples": samples})
        unfinished = self._path(part).with_suffix(".part")
        unfinished.write_text(text)
        unfinished.replace(self._path(part))

    def _path(self, part: Sequence[int]) -> Path:
        digest = hashlib.sha256(json.dumps(list(part)).encode()).hexdigest()[:16]
        return self._folder / f"{digest}.json"


def split(batch: Batch, samples: Sequence[int]) -> list[list[Rollout]]:
    """A batch's rollouts by request. samples: how many each request takes."""
    flat = iter(batch.rollouts)
    return [[next(flat) for _ in range(count)] for count in samples]
