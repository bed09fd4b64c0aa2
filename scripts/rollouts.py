"""Sends prompts to a server's native endpoint and collects tokens: load for tests and benches."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass(frozen=True)
class Rollout:
    """One finished request."""

    output_ids: tuple[int, ...]
    text: str
    meta: dict[str, Any] = field(repr=False)

    @property
    def verifies(self) -> int:
        """Target passes that committed its tokens, 0 for plain decoding."""
        return int(self.meta.get("spec_verify_ct") or 0)


@dataclass(frozen=True)
class Batch:
    """All rollouts of one run, in the order of their prompts, and how long they took."""

    rollouts: list[Rollout]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(each.output_ids) for each in self.rollouts)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def accepted_length(self) -> float:
        """Tokens committed per verify over the whole batch; nan for plain decoding.

        The first token of a request comes from its prefill and is not counted.
        """
        verifies = sum(each.verifies for each in self.rollouts)
        if not verifies:
            return float("nan")
        committed = sum(len(each.output_ids) - 1 for each in self.rollouts if each.verifies)
        return committed / verifies

    @property
    def token_lists(self) -> list[tuple[int, ...]]:
        return [each.output_ids for each in self.rollouts]


def generate(
    url: str,
    prompts: Sequence[Sequence[int]],
    sampling: dict[str, Any] | Sequence[dict[str, Any]],
    *,
    concurrency: int,
    stagger_s: float = 0.0,
    timeout_s: float = 600.0,
    extra: dict[str, Any] | Sequence[dict[str, Any]] | None = None,
) -> Batch:
    """Runs every prompt (token ids), at most `concurrency` at a time.

    sampling: one dict for all, or one per prompt; so is extra, what else a request says.
    stagger_s: seconds between two starts, so that requests join a running batch instead of
    forming one together. A request with n > 1 gives n rollouts.
    """
    return asyncio.run(
        _generate(url, prompts, sampling, concurrency, stagger_s, timeout_s, extra or {})
    )


async def _generate(
    url: str,
    prompts: Sequence[Sequence[int]],
    sampling: dict[str, Any] | Sequence[dict[str, Any]],
    concurrency: int,
    stagger_s: float,
    timeout_s: float,
    extra: dict[str, Any] | Sequence[dict[str, Any]],
) -> Batch:
    gate = asyncio.Semaphore(concurrency)
    # A connection per request: SGLang closes idle ones after 5 s, perhaps as a request sets out.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=url, timeout=timeout_s, limits=limits, trust_env=False
    ) as client:

        async def one(index: int, prompt: Sequence[int]) -> list[Rollout]:
            await asyncio.sleep(index * stagger_s)
            params = sampling if isinstance(sampling, dict) else sampling[index]
            more = extra if isinstance(extra, dict) else extra[index]
            async with gate:
                response = await client.post(
                    "/generate",
                    json={"input_ids": list(prompt), "sampling_params": params, **more},
                )
            response.raise_for_status()
            body = response.json()
            answers = body if isinstance(body, list) else [body]  # a list where n > 1
            return [
                Rollout(tuple(each["output_ids"]), each["text"], each["meta_info"])
                for each in answers
            ]

        started = time.perf_counter()
        answers = await asyncio.gather(*(one(i, p) for i, p in enumerate(prompts)))
        seconds = time.perf_counter() - started
        return Batch([rollout for samples in answers for rollout in samples], seconds)
