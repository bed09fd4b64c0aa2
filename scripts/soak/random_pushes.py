"""Ten thousand pushes, valid and invalid mixed: right answers, right version, nothing leaks."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

from respec_server.process import ServerProcess
from soak.files import BAD, random_head, trained
from soak.load import STARTED_WITH, footprint, prompts, push, sampled, state, under_load
from soak.results import spread

VALID_PART = 0.3
REQUESTS = 8
CONCURRENCY = 2
WARM_UP = 0.2  # of all pushes, before memory and files are compared
GROWTH_MB = 60.0  # over the rest: the allocator's noise of 12 processes' worth of arenas
GROWTH_FILES = 8
HASTE = ("--respec-drafter-core-percent", "100")  # pushes do not rest: more of them in less time
OK, REFUSED = 200, {400, 422}


def run(count: int) -> dict[str, Any]:
    rng = random.Random(0)
    valid = [trained(), *(random_head(seed) for seed in range(3))]
    results: Counter[str] = Counter()
    wrong: list[str] = []
    version, serving = 0, b""
    prints: list[dict[str, float]] = []
    phases: dict[str, list[float]] = {}  # of the pushes that were applied
    texts, sampling = prompts(REQUESTS), [sampled(seed) for seed in range(REQUESTS)]
    with ServerProcess([*STARTED_WITH, *HASTE]) as server:
        pid = server.pid
        started = time.perf_counter()
        with under_load(server.url, texts, sampling, CONCURRENCY) as seen:
            for number in range(count):
                kind, content = _draw(rng, valid)
                answer = push(server.url, content, guard="off")
                if answer.status_code == OK and answer.json()["applied"]:
                    for name, value in answer.json()["phases"].items():
                        phases.setdefault(name, []).append(value)
                if kind == "valid" and content != serving:
                    version, serving = version + 1, content
                good = kind == "valid" or answer.status_code == OK
                results[f"{kind} {answer.status_code}"] += 1
                if answer.status_code == OK and kind != "valid":
                    # A flipped bit may fall where it changes nothing that is read: `__metadata__`.
                    version += int(answer.json()["applied"])
                    serving = content if answer.json()["applied"] else serving
                if answer.status_code not in ({OK} if kind == "valid" else {OK, *REFUSED}):
                    wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
                if good and answer.json()["version"] != version:
                    wrong.append(f"version {answer.json()['version']}, not {version}")
                if number % max(1, count // 50) == 0:
                    prints.append({"push": number, **footprint(server)})
        seconds = time.perf_counter() - started
        final = state(server.url)["serving"]
        alive = server.pid == pid
        prints.append({"push": count, **footprint(server)})
    warm = next(each for each in prints if each["push"] >= WARM_UP * count)
    first = seen.batches[0].token_lists
    return {
        "what": f"{count} pushes, {VALID_PART:.0%} of them valid, the others damaged at random, "
        f"{CONCURRENCY} requests at a time, pushes without rests",
        "seconds": round(seconds, 1),
        "results": dict(sorted(results.items())),
        "version": final,
        "phases_ms": {name.removesuffix("_ms"): spread(times) for name, times in phases.items()},
        "probe_s": {path: spread(times) for path, times in seen.probe_s.items() if times},
        "failed_probes": seen.failed_probes[:20],
        "tokens_per_second": round(seen.tokens_per_second, 1),
        "footprint": prints,
        "wrong": wrong[:20],
        "gates": {
            "every answer was the right one": not wrong,
            "the version is right at the end": final == version,
            "the server was not restarted": alive,
            "no probe failed": not seen.failed_probes,
            "outputs stayed the same": all(b.token_lists == first for b in seen.batches),
            f"memory grew by less than {GROWTH_MB:g} MB after warm-up": prints[-1]["rss_mb"]
            - warm["rss_mb"]
            < GROWTH_MB,
            f"open files grew by less than {GROWTH_FILES}": prints[-1]["files"] - warm["files"]
            < GROWTH_FILES,
        },
    }


def _draw(rng: random.Random, valid: list[bytes]) -> tuple[str, bytes]:
    if rng.random() < VALID_PART:
        return "valid", rng.choice(valid)
    kind = rng.choice(list(BAD))
    return kind, BAD[kind](rng)
