"""`respec profile`: a server measures its own step times, keeps them for later starts, and ends."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from respec_server.launch import Launch, preflight, resolve
from respec_server.process import ServerProcess
from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.profile import Profile
from sglang_respec.planner.profile_cache import profile_folder

PROFILE_SECONDS = 30.0  # nobody waits for this server to serve
START_S = 600.0  # beside the measuring


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="respec profile",
        description="Start a server with these flags, let it measure the step times that the "
        "policy auto decides by, keep them where `respec serve` with the same flags looks, and "
        "stop it. Every other flag is one of `respec serve`.",
        epilog="examples:\n  respec profile --demo\n"
        "  respec profile --model-path MODEL --drafter-path DRAFTER --respec-profile-seconds 60\n"
        "  respec profile --show FILE",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--show", metavar="FILE", help="print a saved profile; start nothing")
    made.add_argument("--out", metavar="FILE", help="write the profile here too")
    made.add_argument("--plot", metavar="FILE", help="draw it (a PNG; needs matplotlib)")
    made.add_argument("--log", metavar="FILE", help="where the server's log goes")
    return made


def profile(arguments: Sequence[str]) -> int:
    """Measure or read one profile and print its tables."""
    options, rest = parser().parse_known_args(arguments)
    if options.show and rest:
        raise RespecError(f"--show starts no server, so {rest[0]} means nothing; leave it out.")
    if options.show:
        path, found = Path(options.show), Profile.load(options.show)
    else:
        path, found = _measured(rest, options.log)
    sys.stdout.write(render(found) + f"\n{path}\n")
    if options.out:
        found.save(options.out)
    if options.plot:
        plot(found, options.plot)
    return 0


def _measured(arguments: Sequence[str], log: str | None) -> tuple[Path, Profile]:
    flags, launch = _checked(arguments)
    # Its own folder, so that it measures in any case.
    with tempfile.TemporaryDirectory(prefix="respec-profile-") as folder:
        flags += ["--respec-policy", "auto", "--respec-profile-dir", folder]
        timeout_s = START_S + launch.config.profile_seconds
        server = ServerProcess(flags, log=log, ready_timeout_s=timeout_s)
        sys.stderr.write(f"respec: measuring; the server's log is {server.log}\n")
        try:
            server.start().wait_until_ready()
        finally:
            server.stop()
        made = sorted(Path(folder).glob("*.json"))
        if not made:
            raise RespecError(
                f"The server measured nothing; its log says why: {server.log}\n{server.log_tail()}"
            )
        kept = profile_folder(launch.config.profile_dir)
        try:
            kept.mkdir(parents=True, exist_ok=True)
            path = Path(shutil.copy(made[0], kept))
        except OSError as error:
            raise RespecError(
                f"The profile cannot be kept in {kept} ({error.strerror}); set "
                "--respec-profile-dir."
            ) from error
        return path, Profile.load(path)


def _checked(arguments: Sequence[str]) -> tuple[list[str], Launch]:
    """The server's flags, refused early where nothing would be measured."""
    flags = list(arguments)
    if not any(each.startswith("--respec-profile-seconds") for each in flags):
        flags += ["--respec-profile-seconds", str(PROFILE_SECONDS)]
    launch = resolve([*flags, "--respec-policy", "auto"], os.environ)
    for name in ("--respec-policy", "--respec-profile"):
        if any(each.split("=")[0] == name for each in arguments):
            raise RespecError(f"`respec profile` measures for the policy auto; leave out {name}.")
    if not launch.config.profile_seconds:
        raise RespecError("--respec-profile-seconds 0 measures nothing; give it some seconds.")
    if launch.drafter is None and "config" not in launch.options:
        raise RespecError(
            "Without a drafter there is nothing to choose between; add --drafter-path, or --demo."
        )
    preflight(launch, os.environ)
    return flags, launch


def render(found: Profile) -> str:
    """Per context: milliseconds of a round by configuration and batch size, and for each shape how
    many tokens a round must commit to be as fast as plain decoding."""
    key = found.key
    lines = [
        f"{key.target} with the drafter {key.drafter} on {key.device} ({key.parallelism})",
        found.source,
    ]
    if found.relative_error is not None:
        lines.append(f"Points held out are {100 * found.relative_error:.0f} % off.")
    for context in _contexts(found):
        sizes = _sizes(found)
        lines.append(
            f"\nround in ms (accepted length that equals plain decoding), {context:g} tokens each"
        )
        heads = [f"batch {size:g}" for size in sizes]
        lines.append("".join(f"{head:>17}" for head in ("", *heads)))
        for config in _configs(found):
            cells = [_cell(found, config, size, context) for size in sizes]
            name = "plain" if config.is_plain else str(config)
            lines.append("".join(f"{cell:>17}" for cell in (name, *cells)))
    return "\n".join(lines) + "\n"


def _cell(found: Profile, config: SpeculationConfig, size: float, context: float) -> str:
    seconds = found.round_seconds(config, size, context)
    text = f"{1e3 * seconds:.2f}"
    if config.is_plain:
        return text
    return f"{text} ({seconds / found.round_seconds(PLAIN, size, context):.2f})"


def _configs(found: Profile) -> list[SpeculationConfig]:
    measured = sorted(each for each in found.rounds if not each.is_plain)
    return [PLAIN, *measured]


def _sizes(found: Profile) -> tuple[float, ...]:
    grid = found.rounds[PLAIN] if PLAIN in found.rounds else found.stages["plain"]
    return grid.batch_sizes


def _contexts(found: Profile) -> tuple[float, ...]:
    grid = found.rounds[PLAIN] if PLAIN in found.rounds else found.stages["plain"]
    return grid.context_tokens


def plot(found: Profile, path: str) -> None:
    """Time of a round over plain decoding's by batch size, one panel per context."""
    try:
        import matplotlib
    except ImportError as error:
        raise RespecError("--plot needs matplotlib; install it, or leave it out.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    contexts, sizes = _contexts(found), _sizes(found)
    figure, axes = pyplot.subplots(
        1, len(contexts), figsize=(5.5 * len(contexts), 4), squeeze=False
    )
    for axis, context in zip(axes[0], contexts, strict=True):
        for config in _configs(found)[1:]:
            times = [
                found.round_seconds(config, size, context)
                / found.round_seconds(PLAIN, size, context)
                for size in sizes
            ]
            axis.plot(sizes, times, marker="o", label=str(config))
        axis.set_xscale("log", base=2)
        axis.set_xlabel("batch size")
        axis.set_ylabel("round over a plain step")
        axis.set_title(f"{context:g} tokens of context", fontsize=10)
        axis.axhline(1.0, color="black", linewidth=0.6, linestyle=":")
        axis.legend(fontsize=8)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise RespecError(f"{path} cannot be written ({error.strerror}).") from error
