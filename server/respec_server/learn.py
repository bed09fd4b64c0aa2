"""`respec learn`: the online learner as a process beside a trainer and a server."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import ipaddress
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_respec.errors import RespecError
from sglang_respec.learner.settings import LearnerSettings, kind_of, settings_table

if TYPE_CHECKING:
    from respec_server.learn_receiver import Door
    from sglang_respec.learner.journal import Journal
    from sglang_respec.learner.loop import Learner
    from sglang_respec.learner.publisher import Serving, WeightSink
    from sglang_respec.learner.rewards import RewardBook
    from sglang_respec.learner.spool import Spool

logger = logging.getLogger("sglang_respec.learner")

DESCRIPTION = """\
Keep a server's drafter close to a policy that moves: collect finished rollouts, distil the target
into the drafter, judge it on rollouts held out, and push it to the server when that pays.

Rollouts come from the server over HTTP (POST /samples here) or through a folder that both see
(--source FOLDER). Rewards, if the loss shall know them: POST /rewards here. docs/learner.md tells
what each stage does; docs/trainers.md how to use it from a training loop.
"""
EXAMPLES = """\
examples:
  respec learn --model-path MODEL --drafter-path DRAFTER --server http://127.0.0.1:30000
  respec learn ... --source /dev/shm/rollouts --weight reward --reward-window-s 120
  respec learn --plot curves.png --output learner     draw what was learned so far, and end
"""
GIVE_UP_S = 120.0  # a candidate that no server takes makes room for a newer one
MAX_CHUNK_BYTES = 1 << 30
LOOK_S = 2.0


def run_learn(arguments: Sequence[str]) -> int:
    """The command; returns the exit code."""
    options = make_parser().parse_args(arguments)
    if options.plot:
        from sglang_respec.learner.journal import plot_journal

        plot_journal(_journal_path(options), options.plot)
        sys.stdout.write(f"{options.plot}\n")
        return 0
    missing = [n for n in ("model_path", "drafter_path", "server") if not getattr(options, n)]
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise RespecError(f"respec learn needs {flags}; `respec learn --help` shows an example.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()
    with _ended_by_signals(stop):
        return learn(options, settings_of(options), stop)


@contextlib.contextmanager
def _ended_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C let the update under way end, write a checkpoint, and go."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(each, lambda *_: stop.set()) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="respec learn", description=DESCRIPTION, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model-path", metavar="FOLDER", help="the target; its embedding is read")
    parser.add_argument("--drafter-path", metavar="FOLDER", help="the drafter to begin with")
    parser.add_argument("--server", metavar="URL", help="the server to push to")
    parser.add_argument("--server-admin-key", metavar="KEY", help="of the server, if it has one")
    parser.add_argument(
        "--source", default="http", metavar="FOLDER|http",
        help="where rollouts come from: a folder of chunks, or POST /samples here (http)",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=30900, help="to listen on (%(default)s)")
    parser.add_argument("--admin-key", metavar="KEY", help="who posts here must send it")
    parser.add_argument(
        "--output", default="learner", metavar="FOLDER",
        help="checkpoints, journal and spool; an existing one is gone on with (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="draw the journal's curves, and end")
    parser.add_argument("--max-updates", type=int, metavar="N", help="end after N updates")
    group = parser.add_argument_group("settings")
    for field in settings_table():
        meta = field.metadata
        unit = f", {meta['unit']}" if "unit" in meta else ""
        group.add_argument(
            "--" + field.name.replace("_", "-"), type=kind_of(field), default=field.default,
            choices=meta.get("choices"), metavar=None if "choices" in meta else "N",
            help=f"{meta['meaning']} (%(default)s{unit})",
        )  # fmt: skip
    return parser


def settings_of(options: argparse.Namespace) -> LearnerSettings:
    names = [field.name for field in settings_table()]
    return LearnerSettings(**{name: getattr(options, name) for name in names})


def learn(options: argparse.Namespace, settings: LearnerSettings, stop: threading.Event) -> int:
    """Build the parts, open the door, wait for the server, and work until told to stop."""
    from respec_server.learn_sink import HttpSink
    from sglang_respec.learner.journal import Journal
    from sglang_respec.learner.rewards import RewardBook
    from sglang_respec.learner.spool import Spool

    _refuse_open_door(options)
    book = RewardBook(settings.reward_window_s, settings.missing_reward)  # type: ignore[arg-type]
    journal = Journal(_journal_path(options))
    sink = HttpSink(options.server, options.server_admin_key)
    state: dict[str, Any] = {"learner": None}
    folder = Path(options.output) / "spool" if options.source == "http" else Path(options.source)
    spool = Spool(folder, settings.spool_mb << 20)
    with _door(options, spool, book, state) as door:
        logger.info("listening on %s", door.url)
        trainable = _load(options, settings)
        serving = _wait_for_server(sink, options.server, stop)
        if serving is None:
            return 0
        learner = _assemble(options, settings, spool, book, journal, sink, trainable, serving)
        state["learner"] = learner
        journal.write("started", settings=dataclasses.asdict(settings), version=serving.version)
        try:
            learner.run(stop, max_updates=options.max_updates)
        finally:
            journal.close()
    return 0


def _door(
    options: argparse.Namespace, spool: Spool, book: RewardBook, state: dict[str, Any]
) -> Door:
    from respec_server.learn_receiver import Door, make_app

    def status() -> dict[str, Any]:
        learner = state["learner"]
        return {"state": "starting"} if learner is None else {
            "state": "learning", **learner.status()}  # fmt: skip

    limit = min(MAX_CHUNK_BYTES, spool.budget_bytes)
    app = make_app(spool, book, status, admin_key=options.admin_key, max_chunk_bytes=limit)
    return Door(app, options.host, options.port)


def _load(options: argparse.Namespace, settings: LearnerSettings) -> Any:
    """The drafter to begin with, on the learner's device, in float32."""
    from sglang_respec.learner.checkpoint import load_drafter
    from sglang_respec.learner.target import read_target_tables
    from sglang_respec.learner.trainer import on_device

    tables = read_target_tables(options.model_path)
    drafter = load_drafter(options.drafter_path, tables.embed_tokens, lm_head=tables.lm_head)
    return on_device(drafter, settings.device)


def _assemble(
    options: argparse.Namespace,
    settings: LearnerSettings,
    spool: Spool,
    book: RewardBook,
    journal: Journal,
    sink: WeightSink,
    drafter: Any,
    serving: Serving,
) -> Learner:
    from sglang_respec.learner.baseline import Baseline
    from sglang_respec.learner.gate import publish_policy
    from sglang_respec.learner.loop import Learner
    from sglang_respec.learner.publisher import Publisher
    from sglang_respec.learner.replay import ReplayBuffer, ReplayLimits
    from sglang_respec.learner.sources import SpoolSource
    from sglang_respec.learner.store import CheckpointStore
    from sglang_respec.learner.trainer import Trainer

    store = CheckpointStore(Path(options.output) / "checkpoints", settings.keep_checkpoints)
    latest = store.latest()
    baseline = Baseline(drafter, serving)
    baseline.rebase(serving, store)
    if latest is not None and latest.state.serving_sha256 == serving.sha256:
        baseline.reference_length = latest.state.reference_length
    limits = ReplayLimits(
        settings.train_tokens, settings.held_out_tokens, settings.max_policy_age,
        settings.max_age_s, settings.held_out_share,
    )  # fmt: skip
    learner = Learner(
        source=SpoolSource(spool),
        book=book,
        buffer=ReplayBuffer(limits),
        trainer=Trainer(drafter, settings),
        baseline=baseline,
        policy=publish_policy(settings),
        publisher=Publisher(sink, give_up_s=GIVE_UP_S),
        store=store,
        journal=journal,
        settings=settings,
    )
    if latest is not None:
        learner.resume(latest)
    return learner


def _wait_for_server(sink: WeightSink, url: str, stop: threading.Event) -> Serving | None:
    """What serves; None when told to stop before anybody answered."""
    from sglang_respec.learner.publisher import SinkUnavailable

    told = False
    while not stop.is_set():
        try:
            return sink.serving()
        except SinkUnavailable as error:
            if not told:
                logger.info("waiting for the server %s (%s)", url, error)
            told = True
            stop.wait(LOOK_S)
    return None


def _refuse_open_door(options: argparse.Namespace) -> None:
    try:
        local = options.host == "localhost" or ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        local = False
    if not local and not options.admin_key:
        raise RespecError(
            f"--host {options.host} is not this machine alone; give an --admin-key, which those "
            "who post rollouts and rewards must then send."
        )


def _journal_path(options: argparse.Namespace) -> Path:
    return Path(options.output) / "journal.jsonl"
