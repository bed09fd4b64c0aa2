"""Plants one bug after the other in the kernels and runs the tests that must notice.

    python scripts/plant_bugs.py            # every bug, about ten minutes on one core
    python scripts/plant_bugs.py verify     # those whose file or name holds this word

Each bug is one small change to a copy of the kernels; nothing in the repository is touched. A bug
is caught when a test of its kernel fails by comparison, by an error, or by never ending (an
interpreted kernel may loop); a bug that the tests let pass makes the command fail.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_report import machine_facts, markdown_table, result_path, version_facts, write_json
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels"
ENDLESS_S = 600.0  # the tests of one kernel take a tenth of it


@dataclass(frozen=True)
class Bug:
    """One change. old stands exactly once in the file (a path below respec_kernels)."""

    name: str
    file: str
    old: str
    new: str
    tests: str


BUGS = [
    Bug(
        "a node's younger sibling is taken among its elders",
        "triton/build_tree.py",
        "(node[None, :] > node[:, None])",
        "(node[None, :] < node[:, None])",
        "build_tree",
    ),
    Bug(
        "one ancestor too few",
        "triton/build_tree.py",
        "depth = tl.sum(attends, axis=1) - 1",
        "depth = tl.sum(attends, axis=1)",
        "build_tree",
    ),
    Bug(
        "writes beyond a full mask",
        "triton/build_tree.py",
        " & (at < mask_bytes)",
        "",
        "build_tree",
    ),
    Bug(
        "a parent is compared with its own token",
        "triton/verify_tree.py",
        "(candidate == tl.gather(target, parent, 0))",
        "(candidate == target)",
        "verify_tree",
    ),
    Bug(
        "the walk begins one slot late",
        "triton/verify_tree.py",
        "range(1, LEVELS)",
        "range(2, LEVELS)",
        "verify_tree",
    ),
    Bug(
        "the last sibling is not looked at",
        "triton/verify_sampled_tree.py",
        "while (child >= 0) & (other != token):",
        "while (child >= 0) & (other != token) & (child < N - 1):",
        "verify_sampled_tree",
    ),
    Bug(
        "an unusable row does not fail its request",
        "triton/verify_sampled_tree.py",
        "tl.store(failed_ptr + request, True)",
        "tl.store(failed_ptr + request, False)",
        "verify_sampled_tree",
    ),
    Bug(
        "root_only is forgotten",
        "triton/verify_sampled_tree.py",
        "if not stays:",
        "if True:",
        "verify_sampled_tree",
    ),
    Bug(
        "the hash mixes with another constant",
        "triton/noise.py",
        "0xE6546B64",
        "0xE6546B65",
        "sample_rows",
    ),
    Bug(
        "the first test of the race dismisses too much",
        "triton/race.py",
        "loose = floor_of(best, peak, SLACK + ROUNDING * tl.abs(peak))",
        "loose = floor_of(best, peak, -0.5)",
        "sample_rows",
    ),
    Bug(
        "ties go to the highest id",
        "triton/race.py",
        "tl.min(tl.where(tied, ids, NOBODY), 0)",
        "tl.max(tl.where(tied, ids, -1), 0)",
        "sample_rows",
    ),
    Bug(
        "top-k keeps one token too many",
        "triton/allowed.py",
        "(count < top_k)",
        "(count <= top_k)",
        "sample_rows",
    ),
    Bug(
        "top-p forgets the token that crosses it",
        "triton/allowed.py",
        "(mass <= limit)",
        "(mass < limit - weight)",
        "sample_rows",
    ),
    Bug(
        "min-p is read as a logit",
        "triton/allowed.py",
        "min_p.to(tl.float64) * 1099511627776.0",
        "min_p.to(tl.float64) * 549755813888.0",
        "sample_rows",
    ),
    Bug(
        "the splits' sums are added unscaled",
        "triton/sample_rows.py",
        "tl.sum(totals * tl.exp2((largests - origin) * per_bit), 0)",
        "tl.sum(totals, 0)",
        "sample_rows",
    ),
    Bug(
        "a logprob without its temperature",
        "triton/sample_rows.py",
        "tl.div_rn(below, temperature) - tl.log(total)",
        "below - tl.log(total)",
        "sample_rows",
    ),
    Bug(
        "the worst of the list is never replaced on a tie",
        "triton/draft_topk.py",
        "((score == worst) & (token < last))",
        "((score == worst) & (token > last))",
        "draft_topk",
    ),
    Bug(
        "noise by the draft's id, not the target's",
        "triton/draft_topk.py",
        "names = tl.load(map_ptr + columns, mask=inside, other=0)",
        "names = columns.to(tl.int64)",
        "draft_topk",
    ),
    Bug(
        "the sibling after the next is skipped",
        "reference/verify_tree.py",
        "match = torch.where(candidates == wanted.gather(1, head), nodes, sibling)",
        "match = torch.where(candidates == wanted, nodes, sibling)",
        "verify_tree",
    ),
    Bug(
        "top-p weighs the token itself, not what is before it",
        "reference/allowed.py",
        "kept = mass.sub_(weight) <= limit[:, None]",
        "kept = mass <= limit[:, None]",
        "sample_rows",
    ),
    Bug(
        "path probabilities without the noise",
        "reference/draft_topk.py",
        "chances = scores.log_softmax(1)",
        "chances = scaled.log_softmax(1)",
        "draft_topk",
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("word", nargs="?", default="", help="only bugs whose file or name has it")
    parser.add_argument("--json", type=Path, default=result_path("planted_bugs"))
    options = parser.parse_args()
    bugs = [bug for bug in BUGS if options.word in f"{bug.file} {bug.name}"]
    for tests in tqdm(sorted({bug.tests for bug in bugs}), desc="without bugs", unit="file"):
        if (found := run_tests(KERNELS, tests)) != "passed":
            sys.exit(f"test_{tests}.py without any bug: {found}; mend that first.")
    caught = [caught_by(bug) for bug in tqdm(bugs, desc="bugs", unit="bug")]
    rows = [[bug.name, bug.file, how] for bug, how in zip(bugs, caught, strict=True)]
    print("\n" + markdown_table(["bug", "file", "caught by"], rows))
    if not options.word:
        facts = {"machine": machine_facts(), "versions": version_facts()}
        table = [dict(zip(("bug", "file", "caught_by"), row, strict=True)) for row in rows]
        write_json(options.json, {**facts, "bugs": table})
    if "passed" in caught:
        sys.exit(f"{caught.count('passed')} of {len(bugs)} bugs went unnoticed.")


def caught_by(bug: Bug) -> str:
    """How the tests noticed: a test's name, ``never ended``, or ``passed`` if they did not."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "kernels"
        shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
        path = copy / "respec_kernels" / bug.file
        text = path.read_text()
        if text.count(bug.old) != 1:
            sys.exit(f"'{bug.old}' stands {text.count(bug.old)} times in {bug.file}, not once.")
        path.write_text(text.replace(bug.old, bug.new))
        return run_tests(copy, bug.tests)


def run_tests(kernels: Path, tests: str) -> str:
    environ = {**os.environ, "PYTHONPATH": f"{kernels}:{ROOT}:{ROOT / 'server'}"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=line"]
    try:
        done = subprocess.run(
            [*command, f"tests/kernels/test_{tests}.py"],
            cwd=ROOT, env=environ, capture_output=True, text=True, timeout=ENDLESS_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "never ended"
    if done.returncode == 0:
        return "passed"
    return first_failure(done.stdout.splitlines())


def first_failure(lines: Sequence[str]) -> str:
    for line in lines:
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split("::")[-1].split(" - ")[0].strip()
    return "an error: " + (lines[-1] if lines else "no output")


if __name__ == "__main__":
    main()
