"""`respec serve`: check, write the settings down, then become SGLang's own server.

The same process runs SGLang's command line, so signals, logs and the exit code are SGLang's. Our
part enters through the plugin groups that SGLang loads on that path.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from respec_server.bundled import demo_flags, demo_models
from respec_server.cpu_environ import serve_with_cpu_environ
from respec_server.device import cuda_devices
from sglang_respec.config import (
    CONFIG_ENV,
    FLAG_PREFIX,
    RespecConfig,
    enabled,
    find_knob,
    knobs,
    load_config,
)
from sglang_respec.drafter.fit import check_drafter_fits
from sglang_respec.errors import RespecError
from sglang_respec.learner.collect_checks import refuse_collecting
from sglang_respec.policy_checks import refuse_policy
from sglang_respec.refusals import refuse_unsupported

DEFAULT_STEPS = 5
DEFAULT_TOPK = 1

EPILOG = """\
Every other flag goes to SGLang unchanged; `sglang serve --help` lists them.

examples:
  respec serve --demo
  respec serve --model-path MODEL --drafter-path DRAFTER
  respec serve --model-path MODEL --drafter-path DRAFTER --tp-size 4 --port 8000
  respec serve --model-path MODEL --drafter-path DRAFTER \\
      --speculative-num-steps 3 --speculative-eagle-topk 2 --speculative-num-draft-tokens 6
"""


@dataclass
class Launch:
    """What `respec serve` was asked for, resolved."""

    arguments: list[str]  # for `sglang serve`
    config: RespecConfig
    options: dict[str, Any] = field(default_factory=dict)  # SGLang's fields named in arguments
    target: str | None = None
    drafter: str | None = None


def serve(arguments: Sequence[str]) -> int:
    """Check everything that can be checked early, then run SGLang's server until it ends."""
    if cuda_devices()[0] == 0:
        serve_with_cpu_environ(arguments)
    launch = resolve(arguments, os.environ)
    preflight(launch, os.environ)
    _write_settings(launch.config)
    if launch.drafter:
        sys.stderr.write(f"respec: {_describe(launch)}\n")
    return become_sglang(launch.arguments)


def parser() -> argparse.ArgumentParser:
    """The flags of `respec serve` that are ours."""
    ours = argparse.ArgumentParser(
        prog="respec serve",
        description="Start an SGLang server with speculative decoding (EAGLE-3).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    ours.add_argument("--drafter-path", metavar="DIR", help="the EAGLE-3 drafter of the target")
    ours.add_argument("--demo", action="store_true", help="serve the bundled models")
    group = ours.add_argument_group("settings")
    group.add_argument(
        f"{FLAG_PREFIX}config", metavar="FILE", help="a TOML file of the settings below"
    )
    for knob in knobs():
        unit = f" [{knob.unit}]" if knob.unit else ""
        default = f" (default: {knob.default})"
        metavar = "{" + ",".join(knob.choices) + "}" if knob.choices else knob.type.__name__.upper()
        help_text = knob.meaning + unit + default
        group.add_argument(knob.flag, metavar=metavar, help=help_text.replace("%", "%%"))
    return ours


def resolve(arguments: Sequence[str], environ: Mapping[str, str]) -> Launch:
    """Split our flags from SGLang's and fill in what the user left open."""
    ours, rest = parser().parse_known_args(arguments)
    for each in rest:
        if each.startswith(FLAG_PREFIX):
            find_knob(each.removeprefix(FLAG_PREFIX).split("=")[0])  # raises with close matches
    config = _resolve_config(ours, environ)
    if rest and not rest[0].startswith("-"):
        rest = ["--model-path", *rest]  # `sglang serve MODEL` is allowed too
    if ours.demo:
        rest = [*demo_flags(), *rest]
        ours.drafter_path = ours.drafter_path or str(demo_models()[1])
        if ours.respec_portable_threads is None and config.portable_threads == 0:
            # Operations of microseconds: a second thread costs more than it does.
            config = config.replace(portable_threads=1)
    given = read_flags(rest)
    target = _text(given.get("model_path") or given.get("model"))
    drafter = ours.drafter_path or _text(
        given.get("speculative_draft_model_path") or given.get("speculative_draft_model")
    )
    if target is None and "config" not in given:
        raise RespecError("No model is given; add --model-path MODEL, or --demo to try it.")
    defaults: list[str] = []
    if ours.drafter_path:
        defaults = _speculation_flags(ours.drafter_path, given)
    # SGLang's parser keeps the last of two equal flags, so what the user wrote wins.
    launch_arguments = ["--model-type", "llm", *defaults, *rest]
    options = read_flags(launch_arguments)
    return Launch(launch_arguments, config, options, target, drafter)


def preflight(launch: Launch, environ: Mapping[str, str]) -> None:
    """Refuse in milliseconds what would fail, or silently not work, half a minute later."""
    if not enabled(environ):
        return
    refuse_unsupported(launch.options, environ)
    refuse_policy(launch.options, launch.config)
    refuse_collecting(launch.options, launch.config.samples_to)
    if launch.drafter and launch.target:
        check_drafter_fits(launch.target, launch.drafter)


def become_sglang(arguments: Sequence[str]) -> int:
    """Run `sglang serve` in this process, through the entry point that SGLang installs."""
    scripts = importlib.metadata.entry_points(group="console_scripts", name="sglang")
    if not scripts:
        raise RespecError("SGLang is not installed in this environment; run `make install`.")
    run = next(iter(scripts)).load()
    sys.argv = ["sglang", "serve", *arguments]
    return int(run() or 0)


def read_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """SGLang's flags by field name: text, number, or True for a flag with no value."""
    found: dict[str, Any] = {}
    for position, each in enumerate(arguments):
        if not each.startswith("--"):
            continue
        name, equals, value = each[2:].partition("=")
        following = arguments[position + 1] if position + 1 < len(arguments) else "--"
        if not equals and not following.startswith("--"):
            value, equals = following, "="
        found[name.replace("-", "_")] = _number_or_text(value) if equals else True
    return found


def _number_or_text(value: str) -> int | str:
    try:
        return int(value)
    except ValueError:
        return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _resolve_config(ours: argparse.Namespace, environ: Mapping[str, str]) -> RespecConfig:
    path = ours.respec_config
    config = RespecConfig.from_toml(path) if path else load_config(environ)
    given = {
        knob.name: knob.from_text(text)
        for knob in knobs()
        if (text := getattr(ours, "respec_" + knob.name)) is not None
    }
    return config.replace(**given)


def _speculation_flags(drafter: str, given: Mapping[str, Any]) -> list[str]:
    """EAGLE-3 with this drafter, and a shape that agrees with what the user gave of it."""
    algorithm = str(given.get("speculative_algorithm", "EAGLE3"))
    if algorithm.upper() != "EAGLE3":
        raise RespecError(
            f"--drafter-path is for EAGLE-3 drafters and --speculative-algorithm is {algorithm}; "
            "remove one of the two."
        )
    flags = ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", drafter]
    if "config" in given:
        return flags  # SGLang's own file may set the shape; without one SGLang chooses
    steps = given.get("speculative_num_steps", DEFAULT_STEPS)
    topk = given.get("speculative_eagle_topk", DEFAULT_TOPK)
    if not (isinstance(steps, int) and isinstance(topk, int)):
        raise RespecError(
            "--speculative-num-steps and --speculative-eagle-topk take a number; "
            f"got {steps!r} and {topk!r}."
        )
    nodes = steps * topk + 1
    return [
        *flags,
        *("--speculative-num-steps", str(steps)),
        *("--speculative-eagle-topk", str(topk)),
        *("--speculative-num-draft-tokens", str(nodes)),
    ]


def _write_settings(config: RespecConfig) -> None:
    """Put the settings where every process that SGLang starts will find them."""
    folder = Path(tempfile.mkdtemp(prefix="respec-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "respec.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    os.environ[CONFIG_ENV] = str(path)


def _describe(launch: Launch) -> str:
    if not enabled():
        return "SGLANG_RESPEC=0, so this is SGLang without the extension"
    shape = ", ".join(
        f"{launch.options[name]} {word}"
        for name, word in (
            ("speculative_num_steps", "steps"),
            ("speculative_eagle_topk", "top-k"),
            ("speculative_num_draft_tokens", "draft tokens"),
        )
        if name in launch.options
    )
    return f"EAGLE-3 with the drafter {launch.drafter}" + (f" ({shape})" if shape else "")
