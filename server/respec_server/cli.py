"""The `respec` command. It imports each verb when asked, so `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from sglang_respec.errors import RespecError, did_you_mean

HELP = """\
usage: respec <command> [options]

SGLang, extended into a rollout server with speculative decoding.

commands:
  serve     start a server; every SGLang flag is accepted
  demo      start a server with the bundled models, run a batch, show the figures
  status    ask a running server how it is doing
  simulate  compare policies on simulated loads, with no model and no GPU
  profile   measure the step times that a server chooses shapes by
  push      send new drafter weights to running servers
  learn     train the drafter beside a running server and push it when that pays
  doctor    check this machine and this installation
  version   print the versions

examples:
  respec demo
  respec serve --demo
  respec serve --model-path MODEL --drafter-path DRAFTER --tp-size 2
  respec status --url http://127.0.0.1:30000
  respec push drafter/model.safetensors --url http://127.0.0.1:30000

`respec <command> --help` tells more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit code. A user's mistake is one sentence and 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    if command in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0
    if command == "--version":
        command = "version"
    verbs = {
        "serve": _serve,
        "demo": _demo,
        "status": _status,
        "simulate": _simulate,
        "profile": _profile,
        "push": _push,
        "learn": _learn,
        "doctor": _doctor,
        "version": _version,
    }
    if command not in verbs:
        sys.stderr.write(f"respec: There is no command {command!r}{did_you_mean(command, verbs)}\n")
        return 2
    try:
        return verbs[command](arguments)
    except RespecError as error:
        sys.stderr.write(f"respec: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _serve(arguments: list[str]) -> int:
    from respec_server.launch import serve

    return serve(arguments)


def _demo(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="respec demo",
        description="Start a server with the bundled models, send it a batch of problems whose "
        "answers have very different lengths, show what was measured, and stop the server.",
    )
    parser.add_argument("--requests", type=int, default=64, help="problems in the batch (64)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time (16)")
    parser.add_argument("--plain", action="store_true", help="without the drafter, to compare")
    parser.add_argument("--log", metavar="FILE", help="where the server's log goes")
    options = parser.parse_args(arguments)
    from respec_server.demo import run_demo

    # Told to end, end in order: the server is a child of ours and must not outlive us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return run_demo(
        requests=options.requests,
        concurrency=options.concurrency,
        plain=options.plain,
        log=options.log,
    )


def _status(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="respec status", description="Ask a running server how it is doing."
    )
    parser.add_argument("--url", default="http://127.0.0.1:30000", help="default: %(default)s")
    parser.add_argument("--api-key", help="the server's API key, if it has one")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--watch", type=float, nargs="?", const=1.0, metavar="SECONDS",
        help="show what it runs and why, again every so many seconds (1) until Ctrl-C",
    )  # fmt: skip
    parser.add_argument("--count", type=int, help="with --watch: stop after so many looks")
    options = parser.parse_args(arguments)
    if options.watch is not None:
        if options.json:
            raise RespecError("--watch shows a table; leave --json out, or ask GET /respec/state.")
        from respec_server.watch import watch

        return watch(
            options.url, every_s=options.watch, looks=options.count, api_key=options.api_key
        )
    from respec_server.status import show_status

    return show_status(options.url, api_key=options.api_key, as_json=options.json)


def _simulate(arguments: list[str]) -> int:
    from respec_server.simulate import simulate

    return simulate(arguments)


def _profile(arguments: list[str]) -> int:
    # Told to end, end in order: the server is a child of ours and must not outlive us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from respec_server.profile import profile

    return profile(arguments)


def _push(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="respec push",
        description="Send new drafter weights to running servers. Each swaps them between two "
        "decode steps, or refuses and stays as it was. Exit code 1 if any refused.",
    )
    parser.add_argument("weights", nargs="?", help="a safetensors file, or a folder with one")
    parser.add_argument(
        "--url", action="append", help="a server; repeat for more (http://127.0.0.1:30000)"
    )
    parser.add_argument(
        "--admin-key", default=os.environ.get("RESPEC_ADMIN_KEY"),
        help="the servers' --admin-api-key (default: the variable RESPEC_ADMIN_KEY)",
    )  # fmt: skip
    parser.add_argument(
        "--server-path", help="instead of sending: a file under the servers' --respec-drafter-dir"
    )
    parser.add_argument("--label", default="", help="your name for these weights")
    parser.add_argument("--base-version", type=int, help="only while this version serves")
    parser.add_argument("--dry-run", action="store_true", help="check, change nothing")
    parser.add_argument("--no-guard", action="store_true", help="do not roll back if it is worse")
    options = parser.parse_args(arguments)
    from respec_server.push import run_push

    return run_push(
        options.weights,
        options.url or ["http://127.0.0.1:30000"],
        admin_key=options.admin_key,
        server_path=options.server_path,
        label=options.label,
        base_version=options.base_version,
        dry_run=options.dry_run,
        guard=not options.no_guard,
    )


def _learn(arguments: list[str]) -> int:
    from respec_server.learn import run_learn

    return run_learn(arguments)


def _doctor(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="respec doctor",
        description="Check this machine and this installation. Exit code 1 if anything fails.",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out what needs SGLang to be imported (half a minute)",
    )
    options = parser.parse_args(arguments)
    from respec_server.doctor import run_doctor

    return run_doctor(quick=options.quick)


def _version(arguments: list[str]) -> int:
    argparse.ArgumentParser(prog="respec version", description="Print the versions.").parse_args(
        arguments
    )
    from respec_server.doctor import versions

    for name, version in versions():
        print(f"{name} {version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
