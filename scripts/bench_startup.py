"""How long a server takes from its command to its first answer, forked and spawned.

    python scripts/bench_startup.py --rounds 3

Starts the demo server with each way of making SGLang's processes, in alternating order, on
this machine; takes two to four minutes a round. Writes docs/results/startup_<device>.json.
"""

import argparse
import statistics
import time

from bench_report import machine_facts, result_path, version_facts, write_json

from respec_server.process import ServerProcess

WAYS = {"fork": "true", "spawn": "false"}


def seconds_to_ready(way: str) -> float:
    """One start of the demo server; its processes are made in this way."""
    started = time.perf_counter()
    with ServerProcess(
        ["--demo", "--respec-policy", "always", "--respec-portable-fork", WAYS[way]]
    ):
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="starts of each kind (default 3)")
    rounds = parser.parse_args().rounds
    machine = machine_facts()
    measured: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        order = list(WAYS) if number % 2 == 0 else list(reversed(WAYS))
        for way in order:
            measured[way].append(seconds_to_ready(way))
            print(f"round {number + 1}: {way:5} {measured[way][-1]:6.1f} s", flush=True)
    ratios = [spawn / fork for fork, spawn in zip(measured["fork"], measured["spawn"], strict=True)]
    print(f"spawn / fork: median {statistics.median(ratios):.2f}")
    path = result_path("startup")
    write_json(
        path,
        {
            "machine": machine,
            "versions": version_facts(),
            "seconds_to_ready": measured,
            "spawn_over_fork": ratios,
        },
    )
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
