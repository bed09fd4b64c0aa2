"""`respec demo`: the bundled models serve a batch of problems with long-tailed answers."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from respec_server.bundled import demo_flags
from respec_server.process import ServerProcess
from respec_server.status import fetch_status
from sglang_respec.demo_task import Problem, make_problem, reward
from sglang_respec.errors import RespecError

WARM_UP_REQUESTS = 4
MAX_TOKENS = 640
TEMPERATURE = 1.0  # what a rollout samples at


@dataclass(frozen=True)
class Answer:
    """One request as the client saw it."""

    correct: bool
    tokens: int
    first_token_s: float
    total_s: float
    verifies: int  # 0 without speculation
    accepted_drafts: int


@dataclass(frozen=True)
class Batch:
    """A finished batch."""

    answers: list[Answer]
    wall_s: float
    prefill_s: float  # the scheduler's own count of time spent in prefill steps

    @property
    def tokens(self) -> int:
        return sum(each.tokens for each in self.answers)

    @property
    def accepted_length(self) -> float | None:
        """Tokens committed per verify, bonus included."""
        verifies = sum(each.verifies for each in self.answers)
        drafts = sum(each.accepted_drafts for each in self.answers)
        return 1 + drafts / verifies if verifies else None


def run_demo(
    *, requests: int = 64, concurrency: int = 16, plain: bool = False, log: str | None = None
) -> int:
    """Start, warm up, run, report, stop. 0 when every request was answered."""
    if requests < 1 or concurrency < 1:
        raise RespecError("--requests and --concurrency must be 1 or more.")
    console = Console()
    how = "plain decoding" if plain else "EAGLE-3 speculation"
    server = ServerProcess(demo_flags() if plain else ["--demo"], log=log)
    console.print(
        f"Starting the bundled models with {how}; the log is {server.log}", soft_wrap=True
    )
    started = time.monotonic()
    try:
        server.start()
        with console.status("Starting SGLang") as spinner:
            server.wait_until_ready(lambda s: spinner.update(f"Starting SGLang, {s:.0f} s"))
        console.print(f"Ready after {time.monotonic() - started:.0f} s at {server.url}")
        _run(console, server.url, WARM_UP_REQUESTS, concurrency, "warm-up", first_seed=0)
        batch = _run(console, server.url, requests, concurrency, "batch", WARM_UP_REQUESTS)
        console.print(_report(batch, how, concurrency))
    finally:
        with console.status("Stopping the server"):
            server.stop()
    console.print(
        "\nServe them yourself: `respec serve --demo`. Your own models: "
        "`respec serve --model-path MODEL --drafter-path DRAFTER`.",
        soft_wrap=True,
    )
    return 0


def _run(
    console: Console, url: str, requests: int, concurrency: int, name: str, first_seed: int
) -> Batch:
    problems = [make_problem(first_seed + each, split="held_out") for each in range(requests)]
    columns = (
        TextColumn(f"{name:8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests"),
        TimeElapsedColumn(),
    )
    prefill_before = fetch_status(url).prefill_busy_s
    started = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(name, total=requests)
        try:
            answers = asyncio.run(_ask_all(url, problems, concurrency, progress, task))
        except OpenAIError as error:
            raise RespecError(
                f"The server refused or lost a request ({error}); run again with --log FILE and "
                "read its log."
            ) from error
    wall_s = time.monotonic() - started
    return Batch(answers, wall_s, fetch_status(url).prefill_busy_s - prefill_before)


async def _ask_all(
    url: str, problems: list[Problem], concurrency: int, progress: Progress, task: Any
) -> list[Answer]:
    gate = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def ask(problem: Problem) -> Answer:
            async with gate:
                answer = await _ask(client, problem)
            progress.advance(task)
            return answer

        return await asyncio.gather(*(ask(problem) for problem in problems))


async def _ask(client: AsyncOpenAI, problem: Problem) -> Answer:
    started = time.monotonic()
    first_token_s = 0.0
    parts: list[str] = []
    tokens = 0
    details: dict[str, Any] = {}
    stream = await client.chat.completions.create(
        model="default",
        messages=problem.messages,
        max_tokens=MAX_TOKENS,
        temperature=TEMPERATURE,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"return_spec_tokens_details": True},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            first_token_s = first_token_s or time.monotonic() - started
            parts.append(chunk.choices[0].delta.content)
        if chunk.usage is not None:
            tokens = chunk.usage.completion_tokens
        extension = (chunk.model_extra or {}).get("sglext") or {}
        details = extension.get("spec_tokens_details") or details
    return Answer(
        correct=reward(problem, "".join(parts)) == 1.0,
        tokens=tokens,
        first_token_s=first_token_s,
        total_s=time.monotonic() - started,
        verifies=details.get("spec_verify_ct", 0),
        accepted_drafts=details.get("spec_num_correct_drafts", 0),
    )


def _report(batch: Batch, how: str, concurrency: int) -> Table:
    lengths = sorted(each.tokens for each in batch.answers)
    correct = sum(each.correct for each in batch.answers)
    count = len(batch.answers)
    first = statistics.fmean(each.first_token_s for each in batch.answers)
    decode_s = batch.wall_s - batch.prefill_s
    length = batch.accepted_length
    rows = [
        ("mode", how, f"temperature {TEMPERATURE:g}, {concurrency} requests at a time"),
        ("requests", str(count), "chat requests over HTTP, streamed"),
        ("correct answers", f"{correct} ({correct / count:.0%})", "problems held out of training"),
        ("output tokens", str(batch.tokens),
         f"per request: median {statistics.median(lengths):.0f}, longest {lengths[-1]}"),
        ("tokens/s", f"{batch.tokens / batch.wall_s:.0f}", "output tokens / time of the batch"),
        ("accepted length", f"{length:.2f}" if length else "-",
         "tokens committed per verify, from the server's count for each request"),
        ("first token", f"{first:.2f} s", "mean, as the client saw it"),
        ("time", f"{batch.wall_s:.1f} s", "of the batch, on the client's clock"),
        ("  in prefill", f"{batch.prefill_s:.1f} s", "the scheduler's own count"),
        ("  in decode, rest", f"{decode_s:.1f} s", "the difference of the two"),
    ]  # fmt: skip
    table = Table(title="Measured", title_justify="left", pad_edge=False)
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_column("how it is measured", style="dim")
    for row in rows:
        table.add_row(*row)
    return table
