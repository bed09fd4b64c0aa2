"""Every knob of the extension, once: name, default, unit, meaning.

The same table serves TOML files, ``--respec-<name>`` flags and ``respec serve --help``. The
settings reach every process SGLang starts through the environment: ``SGLANG_RESPEC_CONFIG`` names
one TOML file. ``SGLANG_RESPEC=0`` turns the extension off.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglang_respec.errors import RespecError, did_you_mean
from sglang_respec.learner.collect_checks import check_samples
from sglang_respec.policies import PolicyChoice, parse_configs

CONFIG_ENV = "SGLANG_RESPEC_CONFIG"
SWITCH_ENV = "SGLANG_RESPEC"
FLAG_PREFIX = "--respec-"

_OFF = frozenset({"0", "false", "no", "n", "off"})
_ON = frozenset({"1", "true", "yes", "y", "on"})


@dataclasses.dataclass(frozen=True)
class Knob:
    """One row of the table: what ``--help`` prints and what a value is checked against."""

    name: str
    type: type[Any]
    default: Any
    meaning: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    minimum: int | None = None

    @property
    def flag(self) -> str:
        return FLAG_PREFIX + self.name.replace("_", "-")

    def check(self, value: Any) -> Any:
        """Return ``value``, or say what a right value looks like."""
        kinds = (int, float) if self.type is float else self.type
        if not isinstance(value, kinds) or (self.type is not bool and isinstance(value, bool)):
            raise RespecError(
                f"{self.name} must be {_article(self.type)}, got {value!r}; "
                f"the default is {self.default!r}."
            )
        if self.choices and value not in self.choices:
            raise RespecError(
                f"{self.name} must be one of {', '.join(self.choices)}, got {value!r}."
            )
        if self.minimum is not None and not value >= self.minimum:  # no number is not enough
            raise RespecError(f"{self.name} must be {self.minimum} or more, got {value!r}.")
        return value

    def from_text(self, text: str) -> Any:
        """Read a flag's value."""
        if self.type is str:
            return self.check(text)
        if self.type is bool and text.lower() in _ON | _OFF:
            return text.lower() in _ON
        try:
            value = self.type(text) if self.type is not bool else text
        except ValueError:
            value = text
        return self.check(value)


def _article(kind: type) -> str:
    return {int: "an integer", str: "a text", bool: "true or false", float: "a number"}[kind]


def _knob(default: Any, meaning: str, **rest: Any) -> Any:
    return dataclasses.field(default=default, metadata={"meaning": meaning, **rest})


@dataclasses.dataclass(frozen=True)
class RespecConfig:
    """The settings of one server. Frozen; :func:`load_config` reads the one in force."""

    kernels: str = _knob(
        "auto",
        "which implementation of the tree kernels serves: auto takes Triton on a GPU "
        "and the PyTorch reference elsewhere",
        choices=("auto", "triton", "reference"),
    )
    policy: str = _knob(
        "default",
        "what chooses the configuration of every decode step: auto (the planner, which measures "
        "step times when the server starts), plain, always (the server's own shape), "
        "always:STEPS,TOPK,NODES, sglang-adaptive, or for tests fuzz:SEED and "
        "above:CONTEXT_TOKENS; default is auto on a CPU and always elsewhere",
    )
    profile: str = _knob(
        "",
        "a file of step times for the policy auto; empty takes those saved in profile_dir, or "
        "measures them",
    )
    profile_dir: str = _knob(
        "",
        "folder where measured step times are kept for the next start; empty is "
        "sglang_respec/profiles in the user's cache folder",
    )
    profile_seconds: float = _knob(
        10.0,
        "time the policy auto may take to measure when the server starts; 0 measures nothing, and "
        "without saved step times the server then keeps its own shape",
        unit="seconds",
        minimum=0,
    )
    graph_memory_mib: int = _knob(
        2048,
        "on CUDA, memory for the graphs of the shapes that the policy auto holds ready beside the "
        "server's own",
        unit="MiB",
        minimum=0,
    )
    configs: str = _knob(
        "",
        "further shapes of speculation to hold ready, as 'STEPS,TOPK,NODES; ...'; each at most "
        "the server's own in steps, top-k and nodes; the policy auto chooses some itself if none "
        "are named",
    )
    tap_window: int = _knob(
        512,
        "hidden states kept per running request while it decodes plainly; each takes "
        "3 * hidden size * bytes per number (21.5 KB for a 7B model in bfloat16)",
        unit="tokens",
        minimum=1,
    )
    tap_overflow: str = _knob(
        "catch_up",
        "when a request has decoded plainly for a whole window: catch_up runs the drafter over "
        "it and starts a new one; forget overwrites the oldest",
        choices=("catch_up", "forget"),
    )
    plain_prefill: str = _knob(
        "warm",
        "the drafter at a prefill while decoding is plain: warm runs it, so that cached prefixes "
        "keep its KV; tap keeps hidden states and runs it when speculation resumes",
        choices=("warm", "tap"),
    )
    step_log: str = _knob(
        "",
        "a file to which the server appends one JSON line for every decode step",
    )
    portable_threads: int = _knob(
        0,
        "torch threads of each scheduler process on a CPU; "
        "0 means all cores divided by the tensor-parallel size",
        unit="threads",
        minimum=0,
    )
    portable_kv_tokens: int = _knob(
        65536,
        "size of the KV cache on a CPU when --max-total-tokens is not given",
        unit="tokens",
        minimum=1,
    )
    portable_fork: bool = _knob(
        True,
        "on a CPU, start SGLang's processes as forks, which inherit its imports, where that is "
        "safe; false spawns them as SGLang does",
    )
    drafter_dir: str = _knob(
        "",
        "folder under which POST /update_drafter may be given a path; empty refuses paths",
    )
    drafter_spool_dir: str = _knob(
        "",
        "folder where pushed files lie until they are staged; empty takes the system's",
    )
    drafter_core_percent: int = _knob(
        25,
        "how much of one core receiving, checking and staging a push may each take beside serving; "
        "100 lets them work without rests",
        unit="%",
        minimum=1,
    )
    drafter_versions: int = _knob(
        3,
        "sets of drafter weights kept in host memory, the serving one among them, to roll back to",
        minimum=2,
    )
    drafter_guard_verifies: int = _knob(
        2048,
        "verifies of single requests over which a pushed drafter is compared with the one before; "
        "0 switches the guard off",
        unit="verifies",
        minimum=0,
    )
    drafter_guard_ratio: float = _knob(
        0.7,
        "a pushed drafter that gets fewer accepted drafts per verify than this part of the one "
        "before is rolled back",
        minimum=0,
    )
    drafter_stall_s: int = _knob(
        30,
        "a sender that sends nothing for so long is answered 408",
        unit="seconds",
        minimum=1,
    )
    drafter_push_s: int = _knob(
        600,
        "the longest that receiving, staging, or waiting for another push may take",
        unit="seconds",
        minimum=1,
    )

    samples_to: str = _knob(
        "",
        "where finished rollouts go, with hidden states and log-probabilities, for `respec learn`: "
        "its address (http://HOST:30900) or a folder that both see; empty collects nothing",
    )
    samples_key: str = _knob("", "the --admin-key of the learner at that address, if it has one")
    samples_fraction: float = _knob(
        1.0, "share of the requests that is collected, chosen by their ids", minimum=0
    )
    samples_mb_per_s: float = _knob(
        50.0,
        "the most that is collected and sent on average; 0 sets no limit",
        unit="MB per second",
        minimum=0,
    )
    samples_max_tokens: int = _knob(
        4096,
        "longer rollouts are cut there, and longer prompts left out",
        unit="tokens",
        minimum=2,
    )
    samples_top_k: int = _knob(
        64, "target log-probabilities kept per token; the rest is one number", minimum=1
    )
    samples_buffer_mb: int = _knob(
        512,
        "the most that may wait in host memory, or in the folder; the oldest are dropped",
        unit="MB",
        minimum=1,
    )

    def __post_init__(self) -> None:
        for knob in knobs():
            knob.check(getattr(self, knob.name))
        check_samples(self.samples_to, self.samples_fraction, self.samples_top_k)
        PolicyChoice.parse(self.policy)
        parse_configs(self.configs)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RespecConfig:
        """Build from plain values; an unknown name is an error that names its close matches."""
        for name in values:
            find_knob(name)
        return cls(**values)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> RespecConfig:
        """Read one TOML file of ``name = value`` lines."""
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RespecError(
                f"The settings file {path} cannot be read ({error.strerror}); "
                f"correct the path or unset {CONFIG_ENV}."
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RespecError(f"The settings file {path} is not valid TOML: {error}.") from error
        try:
            return cls.from_mapping(values)
        except RespecError as error:
            raise RespecError(f"In the settings file {path}: {error}") from error

    def to_toml(self) -> str:
        """The file :meth:`from_toml` reads back, each value with its meaning above it."""
        lines = ["# sglang-respec settings."]
        for knob in knobs():
            unit = f" [{knob.unit}]" if knob.unit else ""
            value = json.dumps(getattr(self, knob.name))  # int, bool and basic strings agree
            lines += ["", f"# {knob.meaning}{unit}", f"{knob.name} = {value}"]
        return "\n".join(lines) + "\n"

    def replace(self, **values: Any) -> RespecConfig:
        """A copy with some values changed; checks names and values like :meth:`from_mapping`."""
        return self.from_mapping({**dataclasses.asdict(self), **values})


def knobs() -> tuple[Knob, ...]:
    """Every knob, in the order of declaration."""
    types = {"int": int, "str": str, "bool": bool, "float": float}
    return tuple(
        Knob(name=each.name, type=types[str(each.type)], default=each.default, **each.metadata)
        for each in dataclasses.fields(RespecConfig)
    )


def find_knob(name: str) -> Knob:
    """The knob of this name, dashes or underscores; or an error that names its close matches."""
    table = {knob.name: knob for knob in knobs()}
    key = name.replace("-", "_")
    if key not in table:
        raise RespecError(f"There is no setting named {name!r}{did_you_mean(key, table)}")
    return table[key]


def enabled(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the extension is on: it is, unless ``SGLANG_RESPEC`` is 0, false, no or off."""
    text = environ.get(SWITCH_ENV, "1").strip().lower()
    if text in _ON or text == "":
        return True
    if text in _OFF:
        return False
    raise RespecError(f"{SWITCH_ENV} must be 0 or 1, got {text!r}.")


def load_config(environ: Mapping[str, str] = os.environ) -> RespecConfig:
    """The settings in force: the file ``SGLANG_RESPEC_CONFIG`` names, or the defaults."""
    path = environ.get(CONFIG_ENV, "")
    return RespecConfig.from_toml(path) if path else RespecConfig()
