"""A server, a steady load on it, and probes of its health, each as long as a block lasts."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from rollouts import Batch, generate
from tokenizers import Tokenizer

from respec_server.bundled import demo_models
from respec_server.process import ServerProcess
from sglang_respec.demo_task import make_problem

PROBE_EVERY_S = 1.0
PROBES = ("/health", "/ready", "/metrics")
STARTED_WITH = ("--demo", "--enable-metrics")


def prompts(count: int) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(demo_models()[0] / "tokenizer.json"))
    texts = (
        f"<|im_start|>user\n{make_problem(seed, 'held_out').prompt}<|im_end|>\n"
        "<|im_start|>assistant\n"
        for seed in range(count)
    )
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def sampled(seed: int, temperature: float = 1.0) -> dict[str, Any]:
    return {"temperature": temperature, "sampling_seed": seed, "max_new_tokens": 128}


def push(url: str, content: bytes, **params: object) -> httpx.Response:
    return httpx.post(
        f"{url}/update_drafter", content=content, params={"wait": "true", **params}, timeout=120,
        trust_env=False,
    )  # fmt: skip


def state(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/drafter", timeout=60, trust_env=False).json()
    return found


@dataclass
class Seen:
    """What load and probes saw."""

    batches: list[Batch] = field(default_factory=list)
    probe_s: dict[str, list[float]] = field(default_factory=lambda: {each: [] for each in PROBES})
    failed_probes: list[str] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Over all batches; each starts when the one before has ended."""
        return sum(each.tokens for each in self.batches) / sum(e.seconds for e in self.batches)


@contextlib.contextmanager
def under_load(
    url: str, texts: Sequence[list[int]], sampling: list[dict[str, Any]], concurrency: int
) -> Iterator[Seen]:
    """The same batch again and again, and a probe a second, until the block ends."""
    stop = threading.Event()
    with probing(url) as seen:

        def load() -> None:
            while not stop.is_set():
                seen.batches.append(generate(url, texts, sampling, concurrency=concurrency))

        with _threads(load):
            try:
                yield seen
            finally:
                stop.set()


@contextlib.contextmanager
def probing(url: str) -> Iterator[Seen]:
    """A probe of health, readiness and metrics a second, until the block ends."""
    seen, stop = Seen(), threading.Event()

    def probe() -> None:
        while not stop.wait(PROBE_EVERY_S):
            for path in PROBES:
                started = time.perf_counter()
                try:
                    status = httpx.get(url + path, timeout=30, trust_env=False).status_code
                except httpx.TransportError as error:
                    seen.failed_probes.append(f"{path} {type(error).__name__}")
                    continue
                seen.probe_s[path].append(time.perf_counter() - started)
                if status != httpx.codes.OK:
                    seen.failed_probes.append(f"{path} {status}")

    with _threads(probe):
        try:
            yield seen
        finally:
            stop.set()


@contextlib.contextmanager
def _threads(*targets: Callable[[], None]) -> Iterator[None]:
    threads = [threading.Thread(target=each) for each in targets]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        for each in threads:
            each.join()


def footprint(server: ServerProcess) -> dict[str, float]:
    """Memory and open files of the server and all it started."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return {
        "rss_mb": round(sum(each.memory_info().rss for each in family) / 1e6, 1),
        "files": sum(each.num_fds() for each in family),
        "threads": sum(each.num_threads() for each in family),
    }
