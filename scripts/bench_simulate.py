"""Simulate every policy on every load and write figures and a plot to docs/results.

    python scripts/bench_simulate.py --profile gpu_llama8b
    python scripts/bench_simulate.py --profile cpu_demo_pair

Throughput is simulated on step times from a profile; decision times are CPU time, measured here.
"""

from __future__ import annotations

import argparse
import json
import sys

from bench_report import RESULTS, machine_facts, version_facts

from respec_server.simulate import describe, plot, render, sglang_policy
from sglang_respec.planner.contest import contest, policy_names
from sglang_respec.planner.traces import TRACES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", required=True, help="a bundled profile, or a file")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    facts = {"machine": machine_facts(), "versions": version_facts()}
    rows = []
    for row in contest(
        [options.profile], list(TRACES), policy_names(), range(options.seeds), sglang_policy
    ):
        rows.append(row)
        sys.stdout.write(render(row))
        sys.stdout.flush()
    document = describe([options.profile], rows) | facts
    document["command"] = f"python scripts/bench_simulate.py --profile {options.profile}"
    name = f"simulate_{options.profile}"
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    plot(document, str(RESULTS / f"{name}.png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
