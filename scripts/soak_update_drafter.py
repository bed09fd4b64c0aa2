"""Many drafter pushes to one real server under load, good and bad ones, and what they cost.

    python scripts/soak_update_drafter.py swaps     1,000 swaps, all outputs compared
    python scripts/soak_update_drafter.py random    10,000 pushes, most of them wrong in some way
    python scripts/soak_update_drafter.py big       one drafter of half a gigabyte

Each starts a server, writes its figures as JSON to docs/results/ and ends with 1 if a gate failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soak import big_push, random_pushes, swaps
from soak.results import write_results

RUNS: dict[str, Callable[[int | None], dict[str, Any]]] = {
    "swaps": lambda count: swaps.run(count or 1000),
    "random": lambda count: random_pushes.run(count or 10_000),
    "big": lambda _: big_push.run(),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--count", type=int, help="swaps or pushes, instead of the usual number")
    parser.add_argument("--output", type=Path, help="instead of a file in docs/results")
    options = parser.parse_args()
    figures = RUNS[options.run](options.count)
    path = write_results(f"drafter_{options.run}_cpu", figures, options.output)
    print(json.dumps(figures, indent=2))
    print(f"written to {path}")
    failed = [name for name, held in figures["gates"].items() if not held]
    print(f"gates that failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
