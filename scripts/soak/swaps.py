"""A thousand swaps under load at temperature 1: no token differs, no request fails."""

from __future__ import annotations

import itertools
import time
from typing import Any

from rollouts import generate

from respec_server.process import ServerProcess
from soak.files import random_head, trained
from soak.load import STARTED_WITH, footprint, prompts, push, sampled, state, under_load
from soak.results import spread

REQUESTS = 32
CONCURRENCY = 16
BASELINE_S = 30.0
PROBE_LIMIT_S = 1.0


def run(count: int) -> dict[str, Any]:
    texts, sampling = prompts(REQUESTS), [sampled(seed) for seed in range(REQUESTS)]
    files = itertools.cycle([random_head(0), trained(), random_head(1), trained()])
    answers: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    with ServerProcess([*STARTED_WITH]) as server:
        url = server.url
        before = generate(url, texts, sampling, concurrency=CONCURRENCY)
        with under_load(url, texts, sampling, CONCURRENCY) as quiet:
            time.sleep(BASELINE_S)
        footprints = [footprint(server)]
        started = time.perf_counter()
        with under_load(url, texts, sampling, CONCURRENCY) as seen:
            for _ in range(count):
                answer = push(url, next(files), guard="off")
                (answers if answer.status_code == 200 else refused).append(answer.json())
        seconds = time.perf_counter() - started
        footprints.append(footprint(server))
        final = state(url)
        push(url, trained(), guard="off")
        after = generate(url, texts, sampling, concurrency=CONCURRENCY)
        push(url, random_head(0), guard="off")
        degraded = generate(url, texts, sampling, concurrency=CONCURRENCY)
    equal = [batch.token_lists == before.token_lists for batch in seen.batches]
    pauses = [each["phases"]["commit_ms"] for each in answers]
    return {
        "what": f"{count} swaps between trained and random drafters, {CONCURRENCY} requests at a "
        "time at temperature 1, bundled models",
        "swaps": len(answers),
        "seconds": round(seconds, 1),
        "requests": REQUESTS * len(seen.batches),
        "pause_ms": spread(pauses),
        "phases_ms": {
            name: spread([each["phases"][f"{name}_ms"] for each in answers])
            for name in ("receive", "check", "stage")
        },
        "probe_s": {path: spread(times) for path, times in seen.probe_s.items()},
        "probe_s_without_swaps": {path: spread(times) for path, times in quiet.probe_s.items()},
        "footprint": {"before the swaps": footprints[0], "after them": footprints[1]},
        "tokens_per_second": {
            "what": "with every second swap a random drafter serves: a step commits one token",
            "without swaps": round(quiet.tokens_per_second, 1),
            "with swaps": round(seen.tokens_per_second, 1),
        },
        "accepted_length": {
            "before": round(before.accepted_length, 3),
            "degraded": round(degraded.accepted_length, 3),
            "restored": round(after.accepted_length, 3),
        },
        "gates": {
            "every swap was applied": not refused and all(each["applied"] for each in answers),
            "the version counts the swaps": final["serving"] == count,
            "every output is token-identical": all(equal) and len(equal) > 0,
            "the outputs after are, too": after.token_lists == before.token_lists
            and degraded.token_lists == before.token_lists,
            "no probe failed": not seen.failed_probes,
            **{
                f"every {path} under {PROBE_LIMIT_S:g} s": max(times) < PROBE_LIMIT_S
                for path, times in seen.probe_s.items()
            },
            "acceptance falls and comes back": degraded.accepted_length < before.accepted_length - 1
            and abs(after.accepted_length - before.accepted_length) < 0.1,
        },
    }
