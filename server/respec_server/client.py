"""Push drafter weights from a trainer, in any environment: one file, which needs httpx alone.

    client = DrafterClient(["http://a:30000", "http://b:30000"], admin_key=KEY)
    client.push(drafter, label=f"step {step}")          # a module or its state_dict
    client.push("drafter/model.safetensors")            # a file, without torch

Weights given as tensors need the `safetensors` package. A push is safe to repeat: a server that
serves these weights already says so, and so a lost answer is asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

BLOCK_BYTES = 1 << 20
WEIGHTS_FILE = "model.safetensors"
RETRIES = 4
FIRST_PAUSE_S = 0.5  # doubled after each attempt
# The server's own word that trying again may help.
PASSING = {408, 429, 502, 503, 504}

Progress = Callable[[str, int, int], None]
"""(url, bytes sent, bytes in all)"""

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why one server did not take a push. As text it is one sentence."""

    message: str  # the server's own, or what the connection said
    status: int | None = None  # HTTP; None where no answer came
    code: str = ""  # for programs: "wrong_tensors", "conflict", "busy", ...
    # Each offending tensor: {"tensor", "problem", "expected", "got"}; all of them, not the first.
    problems: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        return self.message if self.status is None else f"{self.status}: {self.message}"


@dataclass
class PushReport:
    """What became of a push at each server, by URL."""

    applied: dict[str, dict[str, Any]] = field(default_factory=dict)  # as the server answered
    failed: dict[str, Failure] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{url}: version {each.get('version')}" for url, each in self.applied.items()]
        return "; ".join([*lines, *(f"{url}: {why}" for url, why in self.failed.items())])


class PushFailed(RuntimeError):  # noqa: N818 (it is what happened, not a kind of error)
    """At least one server did not take the push. `report` tells which did."""

    def __init__(self, report: PushReport) -> None:
        super().__init__(str(report))
        self.report = report


class DrafterClient:
    """One or many servers. Every method has an async twin, `<name>_async`."""

    def __init__(
        self,
        urls: str | Sequence[str],
        admin_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        retries: int = RETRIES,
    ) -> None:
        """timeout_s: for one attempt, without an answer. retries: attempts after the first."""
        self.urls = [urls.rstrip("/")] if isinstance(urls, str) else [u.rstrip("/") for u in urls]
        self._headers = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}
        self._timeout_s = timeout_s
        self._retries = retries

    def push(self, weights: Any, **options: Any) -> PushReport:
        """Push to every server at once; see `push_async`."""
        return _run(self.push_async(weights, **options))

    async def push_async(
        self,
        weights: Any,
        *,
        label: str = "",
        base_version: int | Mapping[str, int] | None = None,
        dry_run: bool = False,
        wait: bool = True,
        guard: bool = True,
        progress: Progress | None = None,
    ) -> PushReport:
        """Push to every server at once and report what became of it at each.

        weights: the path of a safetensors file, or of a folder with `model.safetensors`; a state
        dict; a module; or the bytes of a file. base_version: one number, or one per URL.
        Raises `PushFailed` if any server did not take it; the others keep it.
        """
        content = await asyncio.to_thread(_Content.of, weights)
        query = {
            "version": label,
            "dry_run": str(dry_run).lower(),
            "wait": str(wait).lower(),
            "guard": "on" if guard else "off",
        }

        async def one(url: str) -> dict[str, Any]:
            base = base_version.get(url) if isinstance(base_version, Mapping) else base_version
            params = query if base is None else {**query, "base_version": str(base)}
            return await self._ask(
                "POST", url, "/update_drafter", params=params, content=content, progress=progress
            )

        return await self._everywhere(one)

    def push_path(self, path: str, **options: Any) -> PushReport:
        """Have every server read a file that it sees under its --respec-drafter-dir."""
        return _run(self.push_path_async(path, **options))

    async def push_path_async(
        self, path: str, *, label: str = "", dry_run: bool = False, guard: bool = True
    ) -> PushReport:
        query = {
            "version": label,
            "dry_run": str(dry_run).lower(),
            "wait": "true",
            "guard": "on" if guard else "off",
        }

        async def one(url: str) -> dict[str, Any]:
            body = {"path": path}
            return await self._ask("POST", url, "/update_drafter", params=query, json=body)

        return await self._everywhere(one)

    def push_group(
        self,
        tensors: Mapping[str, Any],
        *,
        address: str,
        port: int,
        ranks: int,
        label: str = "",
        guard: bool = True,
        name: str = "respec-drafter",
        backend: str = "gloo",
        timeout_s: float = 60.0,
    ) -> dict[str, Any]:
        """Broadcast tensors to one server in a process group; needs torch and this package.

        address, port: of this machine, as the server reaches it. ranks: tensor-parallel ones of
        the server. timeout_s: for each rank to join and for each tensor. Raises `PushFailed`.
        """
        from sglang_respec.drafter.group import GroupAddress, send

        place = GroupAddress(address, port, 1 + ranks, name, backend, timeout_s)
        kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
                 "int32": "I32", "bool": "BOOL"}  # fmt: skip
        declared = [
            {"name": key, "dtype": kinds[str(each.dtype).removeprefix("torch.")],
             "shape": list(each.shape)}
            for key, each in tensors.items()
        ]  # fmt: skip
        group = {"address": address, "port": port, "world_size": 1 + ranks, "name": name,
                 "backend": backend, "timeout_s": timeout_s, "tensors": declared}  # fmt: skip

        def broadcast() -> None:
            # When this fails, so does the push, and the server's answer says why.
            with contextlib.suppress(RuntimeError):
                send(place, tensors.values())

        # A daemon: a server that refuses the push never joins, and then nobody waits for this.
        threading.Thread(target=broadcast, daemon=True).start()
        url = self.urls[0]
        params = {"version": label, "wait": "true", "guard": "on" if guard else "off"}
        report = _run(
            self._everywhere(
                lambda each: self._ask(
                    "POST", each, "/update_drafter", params=params, json={"group": group},
                    retries=0,
                ), [url],
            )
        )  # fmt: skip
        return report.applied[url]

    def rollback(self, to: int | None = None) -> PushReport:
        """Bring an earlier drafter back on every server."""
        return _run(self.rollback_async(to))

    async def rollback_async(self, to: int | None = None) -> PushReport:
        return await self._everywhere(
            # Not repeated: a second rollback would go one version further back.
            lambda url: self._ask("POST", url, "/drafter/rollback", json={"to": to}, retries=0)
        )

    def state(self) -> PushReport:
        """`GET /drafter` of every server."""
        return _run(self.state_async())

    async def state_async(self) -> PushReport:
        return await self._everywhere(lambda url: self._ask("GET", url, "/drafter"))

    async def _everywhere(
        self,
        ask: Callable[[str], Coroutine[Any, Any, dict[str, Any]]],
        urls: Sequence[str] | None = None,
    ) -> PushReport:
        report = PushReport()

        async def one(url: str) -> None:
            try:
                report.applied[url] = await ask(url)
            except _Refused as error:
                report.failed[url] = error.failure
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                report.failed[url] = Failure(str(error) or type(error).__name__)

        await asyncio.gather(*(one(url) for url in urls or self.urls))
        if report.failed:
            raise PushFailed(report)
        return report

    async def _ask(
        self,
        method: str,
        url: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Any = None,
        content: _Content | None = None,
        progress: Progress | None = None,
        retries: int | None = None,
    ) -> dict[str, Any]:
        """One request, repeated while that can help."""
        left = self._retries if retries is None else retries
        pause_s = FIRST_PAUSE_S
        async with httpx.AsyncClient(timeout=self._timeout_s, trust_env=False) as client:
            while True:
                body: dict[str, Any] = {"json": json} if content is None else {
                    "content": content.blocks(url, progress)}  # fmt: skip
                headers = {**self._headers, **(content.headers if content else {})}
                try:
                    answer = await client.request(
                        method, url + path, params=params, headers=headers, **body
                    )
                except httpx.TransportError:
                    if not left:
                        raise
                else:
                    if answer.is_success:
                        found: dict[str, Any] = answer.json()
                        return found
                    if answer.status_code not in PASSING or not left:
                        raise _Refused(_failure(answer))
                left -= 1
                await asyncio.sleep(pause_s)
                pause_s *= 2


class _Refused(Exception):  # noqa: N818 (it is what happened, not a kind of error)
    """The server's own answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


@dataclass(frozen=True)
class _Content:
    """A safetensors file in memory or on disk."""

    data: bytes | None
    path: Path | None
    size: int
    sha256: str

    @classmethod
    def of(cls, weights: Any) -> _Content:
        if isinstance(weights, str | Path):
            path = Path(weights)
            path = path / WEIGHTS_FILE if path.is_dir() else path
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(None, path, path.stat().st_size, digest)
        data = bytes(weights) if isinstance(weights, bytes | bytearray) else _serialize(weights)
        return cls(data, None, len(data), hashlib.sha256(data).hexdigest())

    @property
    def headers(self) -> dict[str, str]:
        return {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(self.size),
            "Content-SHA256": self.sha256,
        }

    async def blocks(self, url: str, progress: Progress | None) -> AsyncIterator[bytes]:
        sent = 0
        if self.path is not None:
            with self.path.open("rb") as file:
                while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
                    yield block
                    sent += len(block)
                    if progress is not None:
                        progress(url, sent, self.size)
            return
        assert self.data is not None
        for start in range(0, self.size, BLOCK_BYTES):
            yield self.data[start : start + BLOCK_BYTES]
            if progress is not None:
                progress(url, min(start + BLOCK_BYTES, self.size), self.size)


def _serialize(weights: Any) -> bytes:
    """A module or its state dict as a safetensors file."""
    from safetensors.torch import save

    tensors = weights.state_dict() if hasattr(weights, "state_dict") else weights
    # Own memory for each: two names of one tensor would be refused by the format's writer.
    data: bytes = save({name: each.detach().cpu().clone() for name, each in tensors.items()})
    return data


def _failure(answer: httpx.Response) -> Failure:
    """What the server said; a proxy in between may say anything."""
    try:
        error = answer.json()["error"]
        problems = tuple(dict(each) for each in error.get("problems", ()))
        return Failure(
            str(error["message"]), answer.status_code, str(error.get("code", "")), problems
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return Failure(answer.text[:200] or answer.reason_phrase, answer.status_code)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
