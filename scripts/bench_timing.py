"""What the kernel benchmarks share: the machine they ran on, and how a call is timed."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
Call = Callable[[], object]


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit(script: str) -> str:
    """Return the commit that last changed what is timed, with a + if it was changed since."""
    timed = ["kernels", "scripts/bench_timing.py", script]
    asked = (
        ["git", "log", "-1", "--format=%h", "--", *timed],
        ["git", "diff", "HEAD", "--", *timed],
    )
    found, changed = (
        subprocess.run(each, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for each in asked
    )
    return found + ("+" if changed else "") if found else "unknown"


def machine(device: str, script: str) -> dict[str, Any]:
    """Return what the figures depend on; ``script`` is the caller's path in the repository."""
    facts = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(script),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
        facts["triton"] = import_module("triton").__version__
    return facts


def state() -> dict[str, Any]:
    """Return how busy the machine was, and whether this process went first."""
    return {"load_average": round(os.getloadavg()[0], 1), "nice": os.nice(0)}


def summary(samples: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(samples, n=4)
    return {
        "median_us": round(middle, 2),
        "p25_us": round(low, 2),
        "p75_us": round(high, 2),
        "min_us": round(min(samples), 2),
        "samples": len(samples),
    }


def time_calls(call: Call, device: str, samples: int) -> dict[str, float]:
    """Time ordinary calls; on a GPU, in batches of ten between two synchronisations."""
    group = 10 if device == "cuda" else 1
    for _ in range(20):
        call()
    found = []
    for _ in range(samples):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(group):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / group * 1e6)
    return summary(found)


def time_launches(call: Call, samples: int, launches: int = 100) -> dict[str, float]:
    """Time launches inside one CUDA graph: what the device needs, without the host."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            call()
    graph.replay()
    found = []
    for _ in range(samples):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / launches * 1e3)
    return summary(found)


def timings(calls: dict[str, Call], device: str, samples: int) -> dict[str, Any]:
    return {
        who: {"call": time_calls(call, device, samples)}
        | ({"device": time_launches(call, samples)} if device == "cuda" else {})
        for who, call in calls.items()
    }
