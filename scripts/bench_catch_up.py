"""Measures how a drafter drafts after steps that it did not see, and what coming back costs.

Each problem runs alone: plain up to a length, then verifies to the end, of which the first 64
count. Servers differ in what happened to the drafter in between; all must give the same tokens.

  always warm       the drafter follows every plain step, as in SGLang's 0-step tier
  full gap          one catch-up over the whole gap: our tap with a window that holds it
  window W          our tap with a window of W tokens that forgets what is older
  window W, kept    the same, but the drafter runs over each window as it fills
  cold              the gap is forgotten but for its last token; SGLang, told to skip the
                    draft-extend of its 0-step tier, forgets that one too

Also says how long the catch-up took. Writes docs/results/catch_up_<cpu or gpu>.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_report
from bench_command import measure_and_tell, numbers, settle_threads
from bench_servers import Pool, ServerSpec, speculation
from bench_serving_run import Prompts
from rollouts import generate

from respec_server.bundled import demo_models
from respec_server.device import cuda_devices
from sglang_respec.errors import RespecError

LOGS = bench_report.ROOT / "run" / "bench_catch_up"
SHAPE = (3, 1, 4)
COUNTED_VERIFIES = 64
FULL_WINDOW = 4096
PLAIN = "0,1,1"


@dataclass(frozen=True)
class Drafter:
    """What happens to the drafter while its target decodes plainly."""

    name: str
    window: int
    overflow: str = "forget"


@dataclass(frozen=True)
class Row:
    """All problems of one drafter after one gap."""

    drafter: str
    window: int
    overflow: str
    gap: int  # plain steps before the first verify
    verifies: int
    accepted_length: float  # tokens per verify, bonus token included
    accepted_length_low: float  # of the problems, the lowest
    accepted_length_high: float
    catch_up_tokens: int  # of the catch-up before the first verify
    catch_up_ms: float  # the median


def main() -> int:
    return measure_and_tell(parse_options(), run, table, "catch_up", "bench_catch_up")


def run(options: argparse.Namespace) -> dict[str, Any]:
    settle_threads(LOGS)
    facts = {"machine": bench_report.machine_facts(), "versions": bench_report.version_facts()}
    prompts = alike(Prompts(str(demo_models()[0]))(16 * options.problems), options.problems)
    rows: list[Row] = []
    with Pool(1, LOGS) as pool:
        for gap in options.gaps:
            expected = None
            for drafter in drafters(options.windows):
                row, tokens = measure(pool, drafter, gap, prompts)
                if expected is not None and tokens != expected:
                    raise RespecError(f"{drafter.name} gives other tokens after a gap of {gap}.")
                expected = tokens
                print(f"gap {gap:<5} {drafter.name:18} accepted {row.accepted_length:.3f}")
                rows.append(row)
    return {
        "what": "accepted length of the first verifies after a gap, and the cost of the catch-up",
        "command": bench_report.public_text(shlex.join(["python", *sys.argv])),
        **facts,
        "shape": SHAPE,
        "counted_verifies": COUNTED_VERIFIES,
        "problems": len(prompts),
        "prompt_tokens": len(prompts[0]),
        "rows": [asdict(row) for row in rows],
    }


def alike(prompts: list[list[int]], count: int) -> list[list[int]]:
    """Prompts of one length, the commonest, so that one server setting makes one gap of all."""
    lengths = [len(each) for each in prompts]
    found = [each for each in prompts if len(each) == statistics.mode(lengths)]
    if len(found) < count:
        raise RespecError(f"Only {len(found)} problems are of one length; ask for fewer.")
    return found[:count]


def drafters(windows: tuple[int, ...]) -> list[Drafter]:
    """A window of one token that runs the drafter when it is full is one that is always warm."""
    bounded = [Drafter(f"window {window}", window) for window in windows]
    kept = [Drafter(f"window {window}, kept", window, "catch_up") for window in windows]
    warm, full = Drafter("always warm", 1, "catch_up"), Drafter("full gap", FULL_WINDOW)
    return [warm, full, *bounded, *kept, Drafter("cold", 1)]


def measure(
    pool: Pool, drafter: Drafter, gap: int, prompts: list[list[int]]
) -> tuple[Row, list[tuple[int, ...]]]:
    """The row of one drafter and gap, and every problem's tokens."""
    log = LOGS / f"steps-{gap}-{drafter.window}-{drafter.overflow}.jsonl"
    log.write_text("", encoding="utf-8")
    url = pool.url(server(drafter, gap + len(prompts[0]), log))
    tokens = 1 + gap + COUNTED_VERIFIES * SHAPE[2]
    sampling = {"temperature": 0.0, "max_new_tokens": tokens, "ignore_eos": True}
    lengths, times, caught, answers = [], [], 0, []
    for prompt in prompts:
        before = len(read(log))
        answers += generate(url, [prompt], sampling, concurrency=1).token_lists
        steps = read(log)[before:]
        verifies = [each for each in steps if each["config"] != PLAIN]
        if len(steps) - len(verifies) != gap:
            raise RespecError(f"{gap} plain steps were wanted, {len(steps) - len(verifies)} ran.")
        counted = verifies[:COUNTED_VERIFIES]
        lengths.append(statistics.mean(each["tokens_committed"] for each in counted))
        caught = counted[0]["catch_up_tokens"]
        times.append(1e3 * counted[0]["catch_up_seconds"])
    row = Row(
        drafter=drafter.name,
        window=drafter.window,
        overflow=drafter.overflow,
        gap=gap,
        verifies=COUNTED_VERIFIES * len(prompts),
        accepted_length=round(statistics.mean(lengths), 4),
        accepted_length_low=round(min(lengths), 4),
        accepted_length_high=round(max(lengths), 4),
        catch_up_tokens=caught,
        catch_up_ms=round(statistics.median(times), 3),
    )
    return row, answers


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def server(drafter: Drafter, context: int, log: Path) -> ServerSpec:
    target, path = map(str, demo_models())
    flags: tuple[str, ...] = ("--model-path", target, *speculation(path, *SHAPE))
    if cuda_devices()[0] == 0:
        flags += ("--device", "cpu", "--dtype", "float32")
    flags += ("--max-running-requests", "4", "--respec-policy", f"above:{context}")
    flags += ("--respec-tap-window", str(drafter.window))
    flags += ("--respec-tap-overflow", drafter.overflow, "--respec-step-log", str(log))
    return ServerSpec(f"{drafter.name}, context {context}", False, flags)


def table(result: dict[str, Any]) -> str:
    """Accepted length by drafter and gap."""
    rows = {(each["drafter"], each["gap"]): each for each in result["rows"]}
    gaps = sorted({gap for _, gap in rows})
    names = list(dict.fromkeys(name for name, _ in rows))
    cells = [[name, *(f"{rows[name, g]['accepted_length']:.2f}" for g in gaps)] for name in names]
    times = [f"{rows['full gap', gap]['catch_up_ms']:.1f} ms" for gap in gaps]
    header = ["accepted length", *(f"gap {gap}" for gap in gaps)]
    return bench_report.markdown_table(header, [*cells, ["catch-up, full gap", *times]])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--gaps", type=numbers, default=(16, 64, 256, 512), metavar="N,N", help="(16,64,256,512)")
    add("--windows", type=numbers, default=(32, 128), metavar="N,N", help="(32,128)")
    add("--problems", type=int, default=8, help="run after each gap (8)")
    add("--out", type=Path, help="the result's file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
