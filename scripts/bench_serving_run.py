"""How bench_serving.py measures: the loads, the gate before them, the order of visits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from bench_servers import Pool, ServerSpec
from bench_serving_report import BASELINE, Measurement
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rollouts import Batch, generate
from time_slices import take_turns

from sglang_respec.demo_task import make_problem
from sglang_respec.errors import RespecError

WARM_UP_SEED = 1_000_000  # problems that no load asks
WARM_UP_TOKENS = 8
GATE_CONCURRENCY = 8
ACCEPTED_CONCURRENCY = 16


@dataclass(frozen=True)
class Load:
    """What every server is asked."""

    batches: tuple[int, ...]
    rounds: int
    requests: dict[int, int]  # by batch
    max_new_tokens: int
    gate_prompts: int
    accepted_prompts: int
    accepted_length_max_new_tokens: int

    @property
    def greedy(self) -> dict[str, Any]:
        return {"temperature": 0.0, "max_new_tokens": self.max_new_tokens}


class Prompts:
    """Held-out problems as the target's chat template writes them, by seed."""

    def __init__(self, model: str) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model)

    def __call__(self, count: int, first_seed: int = 0) -> list[list[int]]:
        seeds = range(first_seed, first_seed + count)
        conversations = [make_problem(seed, "held_out").messages for seed in seeds]
        return [
            self._tokenizer.apply_chat_template(
                each, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            for each in conversations
        ]


class Gate:
    """Compares token lists with those of stock plain decoding."""

    def __init__(self, exact: bool) -> None:
        self._exact = exact
        self._expected: dict[tuple[str, int], list[tuple[int, ...]]] = {}

    def check(self, load: tuple[str, int], server: str, found: list[tuple[int, ...]]) -> int:
        """How many answers are equal; raises where all must be. load: what was asked."""
        assert load in self._expected or server == BASELINE, "stock plain answers first"
        expected = self._expected.setdefault(load, found)
        differ = [index for index, each in enumerate(found) if each != expected[index]]
        if differ and self._exact:
            mine, plain = found[differ[0]], expected[differ[0]]
            token = next(
                (i for i, (a, b) in enumerate(zip(mine, plain, strict=False)) if a != b),
                min(len(mine), len(plain)),
            )
            raise RespecError(
                f"{server} differs from {BASELINE} in {len(differ)} of {len(found)} answers "
                f"({load[0]} of {load[1]}), first in answer {differ[0]} at token {token}; nothing "
                "more is timed. In bfloat16 near-ties differ; --report-differences counts them."
            )
        return len(found) - len(differ)


@dataclass(frozen=True)
class Bench:
    """Sends loads to servers and writes down what came back."""

    pool: Pool
    prompts: Prompts
    load: Load
    gate: Gate
    progress: Progress

    def start(self, specs: Sequence[ServerSpec]) -> None:
        """Start them side by side."""
        with self._step(f"starting {' and '.join(each.name for each in specs)}"):
            self.pool.start(specs)

    def probe(self, spec: ServerSpec) -> int:
        """How many answers of the probe set are those of stock plain."""
        prompts = self.prompts(self.load.gate_prompts)
        with self._step(f"{spec.name}: the same tokens?"):
            batch = generate(
                self.pool.url(spec), prompts, self.load.greedy, concurrency=GATE_CONCURRENCY
            )
        return self.gate.check(("probe", len(prompts)), spec.name, batch.token_lists)

    def measure(self, spec: ServerSpec, size: int, round_: int, position: int) -> Measurement:
        """One load of requests, of which `size` are kept running."""
        with self._step(f"{spec.name}: batch {size}, round {round_ + 1}"):
            url = self.pool.url(spec)
            warm_up(url, self.prompts, size)
            busy = load_average()
            batch = self.load_of(spec, size)()
        return self.note(spec, size, round_, position, batch, batch.seconds, busy)

    def measure_in_slices(
        self, specs: Sequence[ServerSpec], size: int, round_: int
    ) -> list[Measurement]:
        """The same of several servers at once, which take turns; see `time_slices`."""
        with self._step(f"batch {size}, round {round_ + 1}"):
            for spec in specs:
                warm_up(self.pool.url(spec), self.prompts, size)
            busy = load_average()
            pids = [self.pool.pid(spec) for spec in specs]
            sliced = take_turns(pids, [self.load_of(spec, size) for spec in specs])
        return [
            self.note(spec, size, round_, position, each.result, each.seconds, busy)
            for position, (spec, each) in enumerate(zip(specs, sliced, strict=True))
        ]

    def load_of(self, spec: ServerSpec, size: int) -> Callable[[], Batch]:
        prompts = self.prompts(self.load.requests[size])
        url, sampling = self.pool.url(spec), self.load.greedy
        return partial(generate, url, prompts, sampling, concurrency=size)

    def note(
        self,
        spec: ServerSpec,
        size: int,
        round_: int,
        position: int,
        batch: Batch,
        seconds: float,  # that the server ran; less than those of the batch if it took turns
        busy: float,
    ) -> Measurement:
        """What came back, written down, once its tokens are seen to be the right ones."""
        equal = self.gate.check(("batch", size), spec.name, batch.token_lists)
        verifies, length = _speculated(batch)
        waited_s = sum(each.meta["e2e_latency"] for each in batch.rollouts)
        found = Measurement(
            server=spec.name,
            batch=size,
            round=round_,
            position=position,
            requests=len(batch.rollouts),
            tokens=batch.tokens,
            seconds=round(seconds, 4),
            verifies=verifies,
            accepted_length=length,
            mean_concurrency=round(waited_s / batch.seconds, 2),
            load_average=busy,
            equal_to_baseline=equal,
        )
        note = "" if length is None else f", accepted length {length:.2f}"
        self.progress.console.print(
            f"batch {size:<3} round {round_ + 1}  {spec.name:36} "
            f"{found.tokens_per_s:8.1f} tokens/s{note}",
            highlight=False,
            soft_wrap=True,
        )
        return found

    def accepted_length(self, spec: ServerSpec) -> dict[str, Any]:
        prompts = self.prompts(self.load.accepted_prompts)
        sampling = {"temperature": 0.0, "max_new_tokens": self.load.accepted_length_max_new_tokens}
        with self._step(f"{spec.name}: accepted length"):
            batch = generate(
                self.pool.url(spec), prompts, sampling, concurrency=ACCEPTED_CONCURRENCY
            )
        verifies, length = _speculated(batch)
        return {
            "server": spec.name,
            "prompts": len(prompts),
            "tokens": batch.tokens,
            "verifies": verifies,
            "accepted_length": length,
        }

    @contextmanager
    def _step(self, said: str) -> Iterator[None]:
        task = self.progress.task_ids[0]
        self.progress.update(task, description=said)
        yield
        self.progress.advance(task)


def load_average() -> float:
    return round(os.getloadavg()[0], 2)


def warm_up(url: str, prompts: Prompts, size: int) -> None:
    """Wake the server at this batch size, then empty its prefix cache."""
    sampling = {"temperature": 0.0, "max_new_tokens": WARM_UP_TOKENS}
    generate(url, prompts(size, WARM_UP_SEED), sampling, concurrency=size)
    answer = httpx.post(
        f"{url}/flush_cache", params={"timeout": 30.0}, timeout=60.0, trust_env=False
    )
    answer.raise_for_status()


def _speculated(batch: Batch) -> tuple[int, float | None]:
    verifies = sum(each.verifies for each in batch.rollouts)
    return verifies, round(batch.accepted_length, 4) if verifies else None


def rotated(specs: Sequence[ServerSpec], round_: int, rounds: int) -> list[ServerSpec]:
    """The order of one round: each round starts a fair share of the list further on."""
    start = round_ * len(specs) // rounds % len(specs)
    return [*specs[start:], *specs[:start]]


def visiting_order(
    specs: Sequence[ServerSpec], batches: Sequence[int], rounds: int, *, resident: bool
) -> Iterator[tuple[ServerSpec, int, int, int]]:
    """(server, batch, round, position in the round).

    Where all servers stay running, the servers of one round follow each other within seconds;
    otherwise a server takes all its batches while it runs.
    """
    if resident:
        for batch in batches:
            for round_ in range(rounds):
                for position, spec in enumerate(rotated(specs, round_, rounds)):
                    yield spec, batch, round_, position
        return
    for round_ in range(rounds):
        for position, spec in enumerate(rotated(specs, round_, rounds)):
            for batch in batches:
                yield spec, batch, round_, position


def progress_bar(console: Console, steps: int) -> Progress:
    progress = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=console,
    )
    progress.add_task("starting", total=steps)
    return progress
