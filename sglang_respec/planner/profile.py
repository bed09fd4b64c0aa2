"""A profile: what each stage of a round costs on one machine, as one JSON file.

A round of a configuration (s, k, n) is s - 1 draft steps of k candidates, one verify of n nodes
and one draft-extend of n tokens (the first candidates come from the extend of the round before).
Plain decoding is one stage of its own. A round may also be given whole; it then counts before the
sum of its stages.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sglang_respec.core import SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.grid import Grid

FORMAT = "respec-profile/1"
KINDS = {
    "measured": "measured on the machine it names",
    "derived": "computed from other measurements; the source says how",
    "synthetic": "made up, for tests",
}
STAGES = ("plain", "verify", "draft_step", "extend")
SHOWN_DIFFERENCES = 2  # a sentence that is read to its end
REMEDY = "make a new one with `respec profile`"


@dataclass(frozen=True)
class ProfileKey:
    """What the times depend on. A profile serves only where all of it is equal."""

    target: str
    drafter: str
    device: str
    parallelism: str  # for example "tp=1"
    dtype: str
    versions: tuple[tuple[str, str], ...]  # (package, version), sorted
    execution: str = ""  # attention backends, page size, graphs

    def differences(self, other: ProfileKey) -> list[str]:
        """``["device 'H100' instead of 'H200'", ...]``: what self has instead of other's."""
        mine, theirs = asdict(self), asdict(other)
        for each in (mine, theirs):
            each |= {f"version of {package}": version for package, version in each.pop("versions")}
        return [
            f"{name} {mine.get(name)!r} instead of {theirs.get(name)!r}"
            for name in {**theirs, **mine}
            if mine.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True)
class HeldOut:
    """A point that was measured but is no knot of a grid: what interpolation must predict."""

    config: SpeculationConfig
    batch_size: float
    context_tokens: float
    seconds: float


@dataclass(frozen=True)
class Profile:
    """Step times of one machine, and what they were measured for."""

    key: ProfileKey
    kind: str  # one of KINDS
    source: str  # a sentence: where the numbers come from
    stages: Mapping[str, Grid]  # by STAGES; "verify", "draft_step", "extend" may be absent
    rounds: Mapping[SpeculationConfig, Grid] = field(default_factory=dict)  # width 1
    host_s: float = 0.0  # added to every composed speculative round
    switch_s: float = 0.0  # changing between two speculative configurations
    graph_bytes: Mapping[SpeculationConfig, int] = field(default_factory=dict)
    held_out: tuple[HeldOut, ...] = ()

    def composes(self, config: SpeculationConfig) -> bool:
        """Whether :meth:`round_seconds` knows this configuration."""
        if config in self.rounds:
            return True
        return "plain" in self.stages if config.is_plain else set(STAGES) <= set(self.stages)

    def round_seconds(self, config: SpeculationConfig, batch: float, context: float) -> float:
        """Seconds of one round: measured whole if it was, else the sum of its stages."""
        if config in self.rounds:
            return self.rounds[config].at(1, batch, context)
        if not self.composes(config):
            raise RespecError(f"The profile has no step times for {config}; {REMEDY}.")
        if config.is_plain:
            return self.stages["plain"].at(1, batch, context)
        steps, topk, nodes = config.num_steps, config.topk, config.num_draft_tokens
        return (
            (steps - 1) * self.stages["draft_step"].at(topk, batch, context)
            + self.stages["verify"].at(nodes, batch, context)
            + self.stages["extend"].at(nodes, batch, context)
            + self.host_s
        )

    def extend_seconds(self, tokens: float, batch: float, context: float) -> float:
        """Seconds of one draft-extend over ``tokens`` in all: a catch-up, or a probe."""
        if tokens <= 0 or "extend" not in self.stages:
            return 0.0
        return self.stages["extend"].at(tokens / batch, batch, context)

    def held_out_errors(self) -> list[float]:
        """Relative error of the prediction at each held-out point, signed."""
        return [
            self.round_seconds(each.config, each.batch_size, each.context_tokens) / each.seconds - 1
            for each in self.held_out
        ]

    @property
    def relative_error(self) -> float | None:
        """Root mean square of the held-out errors; None where nothing was held out."""
        errors = self.held_out_errors()
        return math.sqrt(sum(e * e for e in errors) / len(errors)) if errors else None

    @property
    def comparative_error(self) -> float | None:
        """:attr:`relative_error` without what the configurations held out at one batch share:
        interpolation is off for all of them there, or the machine was slow at that moment, and
        no choice hangs on either. A configuration held out alone shares nothing.
        """
        found: dict[tuple[float, float], list[float]] = {}
        for each, error in zip(self.held_out, self.held_out_errors(), strict=True):
            found.setdefault((each.batch_size, each.context_tokens), []).append(error)
        squares, freedom = 0.0, 0
        for errors in found.values():
            shared = sum(errors) / len(errors) if len(errors) > 1 else 0.0
            squares += sum((each - shared) ** 2 for each in errors)
            freedom += max(1, len(errors) - 1)
        return math.sqrt(squares / freedom) if found else None

    def require(self, key: ProfileKey, path: str | os.PathLike[str]) -> None:
        """Refuse a profile of another model, machine, layout or version."""
        differences = self.key.differences(key)
        if differences:
            shown = ", ".join(differences[:SHOWN_DIFFERENCES])
            others = len(differences) - SHOWN_DIFFERENCES
            more = f" ({others} more differ)" if others > 0 else ""
            raise RespecError(
                f"The profile {os.fspath(path)} was made for {shown}{more}; {REMEDY}."
            )

    def to_json(self) -> str:
        """The file :meth:`load` reads back."""
        document = {
            "format": FORMAT,
            "kind": self.kind,
            "source": self.source,
            "key": {**asdict(self.key), "versions": dict(self.key.versions)},
            "host_s": self.host_s,
            "switch_s": self.switch_s,
            "stages": {name: asdict(grid) for name, grid in self.stages.items()},
            "rounds": {str(config): asdict(grid) for config, grid in self.rounds.items()},
            "graph_bytes": {str(config): size for config, size in self.graph_bytes.items()},
            "held_out": [{**asdict(each), "config": str(each.config)} for each in self.held_out],
            "held_out_relative_error": self.relative_error,
        }
        return json.dumps(document, indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write beside the file first, so that a reader never sees half a profile."""
        target = Path(path)
        partial = target.with_name(target.name + f".{os.getpid()}.partial")
        try:
            partial.write_text(self.to_json(), encoding="utf-8")
            partial.replace(target)
        except OSError as error:
            raise RespecError(
                f"The profile {path} cannot be written ({error.strerror}); name another path."
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a profile. RespecError, one sentence, for anything else than a whole one."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RespecError(
                f"The profile {path} cannot be read ({error.strerror}); correct the path or "
                f"{REMEDY}."
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RespecError(f"The profile {path} is not JSON; {REMEDY}.") from error
        try:
            return cls.from_document(document)
        except RespecError as error:
            sentence = str(error).rstrip(".")
            raise RespecError(f"The profile {path} is no use: {sentence}; {REMEDY}.") from error

    @classmethod
    def from_json(cls, text: str) -> Profile:
        """What :meth:`to_json` wrote; RespecError for anything else."""
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise RespecError(f"a profile must be JSON ({error})") from error
        return cls.from_document(document)

    @classmethod
    def from_document(cls, document: Any) -> Profile:
        """Build from parsed JSON; every missing or wrong field is named."""
        reader = _Fields(document, "the file")
        if reader.get("format", str) != FORMAT:
            raise RespecError(f"its format is {document['format']!r}, not {FORMAT!r}")
        kind = reader.get("kind", str)
        if kind not in KINDS:
            raise RespecError(f"its kind is {kind!r}, not one of {', '.join(KINDS)}")
        profile = cls(
            key=_key(reader.get("key", dict)),
            kind=kind,
            source=reader.get("source", str),
            stages={
                name: _grid(grid, f"stage {name}")
                for name, grid in reader.get("stages", dict).items()
            },
            rounds={
                SpeculationConfig.parse(name): _grid(grid, f"round {name}")
                for name, grid in reader.get("rounds", dict, {}).items()
            },
            host_s=reader.seconds("host_s"),
            switch_s=reader.seconds("switch_s"),
            graph_bytes={
                SpeculationConfig.parse(name): _whole(size, f"graph_bytes of {name}")
                for name, size in reader.get("graph_bytes", dict, {}).items()
            },
            held_out=tuple(_held_out(each) for each in reader.get("held_out", list, [])),
        )
        unknown = set(profile.stages) - set(STAGES)
        if unknown:
            raise RespecError(f"it has a stage {sorted(unknown)[0]!r}, which no round runs")
        if not profile.composes(SpeculationConfig.parse("plain")):
            raise RespecError("it has no step times of plain decoding")
        for each in profile.held_out:
            if not profile.composes(each.config):
                raise RespecError(f"it holds out {each.config}, for which it has no step times")
        return profile


class _Fields:
    """Reads typed fields of one JSON object and names the one that is missing or wrong."""

    def __init__(self, document: Any, where: str) -> None:
        if not isinstance(document, dict):
            raise RespecError(f"{where} is not a JSON object")
        self._document = document
        self._where = where

    def get(self, name: str, kind: type[Any] | tuple[type[Any], ...], default: Any = None) -> Any:
        value = self._document.get(name, default)
        if value is None:
            raise RespecError(f"{self._where} lacks {name!r}")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise RespecError(f"{name!r} of {self._where} is {value!r:.40}, which it cannot be")
        return value

    def seconds(self, name: str, default: float = 0.0) -> float:
        value = float(self.get(name, (int, float), default))
        if not 0.0 <= value < 3600.0:
            raise RespecError(f"{name!r} of {self._where} must be 0 or more seconds, not {value!r}")
        return value


def _key(document: Any) -> ProfileKey:
    fields = _Fields(document, "the key")
    versions = fields.get("versions", dict)
    texts = {
        name: fields.get(name, str)
        for name in ("target", "drafter", "device", "parallelism", "dtype")
    }
    return ProfileKey(
        **texts,
        versions=tuple(sorted((str(k), str(v)) for k, v in versions.items())),
        execution=fields.get("execution", str, ""),
    )


def _grid(document: Any, where: str) -> Grid:
    fields = _Fields(document, where)
    widths, batch_sizes, context_tokens = (
        _numbers(fields.get(name, list), f"{name} of {where}")
        for name in ("widths", "batch_sizes", "context_tokens")
    )
    cube = fields.get("seconds", list)
    if not all(
        isinstance(plane, list) and all(isinstance(r, list) for r in plane) for plane in cube
    ):
        raise RespecError(f"seconds of {where} must be numbers, three lists deep")
    values = [[_numbers(row, f"seconds of {where}") for row in plane] for plane in cube]
    try:
        return Grid.from_measurements(widths, batch_sizes, context_tokens, values)
    except RespecError as error:
        raise RespecError(f"in {where}, {error}") from error


def _numbers(values: Sequence[Any], where: str) -> list[float]:
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise RespecError(f"{where} must be numbers")
    return [float(v) for v in values]


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RespecError(f"{where} must be a whole number of bytes, not {value!r}")
    return value


def _held_out(document: Any) -> HeldOut:
    fields = _Fields(document, "a held-out point")
    numbers = [
        float(fields.get(name, (int, float)))
        for name in ("batch_size", "context_tokens", "seconds")
    ]
    if not all(0.0 < number < math.inf for number in numbers):
        raise RespecError("a held-out point must have positive numbers")
    return HeldOut(SpeculationConfig.parse(fields.get("config", str)), *numbers)
