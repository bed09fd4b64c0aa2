"""A push from its first byte to its commit: receive, check, stage, commit, one at a time.

It either becomes the serving drafter completely or changes nothing; every other way out is a
`Refusal`. Runs in the HTTP process, beside serving, and never waits for running requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from starlette.requests import ClientDisconnect

from respec_server.push_metrics import PushMetrics
from respec_server.receive import Received, Spool, receive_body, receive_copy, too_large
from respec_server.refusal import Refusal, wrong_tensors
from respec_server.schemas import Group, Phases, PushAnswer, PushOptions, RollbackAnswer
from sglang_respec.config import RespecConfig
from sglang_respec.drafter.pace import Pace, share_of
from sglang_respec.drafter.reader import BadFile, Tensor, read_layout
from sglang_respec.drafter.schema import Declared, DrafterSchema, Match, match
from sglang_respec.drafter.values import value_problems
from sglang_respec.errors import RespecError

logger = logging.getLogger(__name__)

POLL_S = (0.002, 0.05)  # from, to: how often a commit is asked for while ranks still stage


class Engine(Protocol):
    """A running engine. `call` raises `RespecError` with what the scheduler said."""

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]: ...

    def on_verdict(self, callback: Callable[[int, int], None]) -> None: ...


@dataclass
class _Push:
    """One push under way."""

    options: PushOptions
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    phases: Phases = field(default_factory=Phases)
    sha256: str = ""
    size: int = 0
    ignored: tuple[str, ...] = ()


class DrafterService:
    """The operations behind the routes."""

    def __init__(self, engine: Engine, config: RespecConfig, metrics: PushMetrics) -> None:
        """Raises `RespecError` if a configured folder cannot be used."""
        self._engine = engine
        self._config = config
        self._metrics = metrics
        self._spool = _open_spool(config.drafter_spool_dir)
        self._root = _existing(config.drafter_dir)
        self._share = share_of(config.drafter_core_percent)
        self._lock = asyncio.Lock()
        self._schema: DrafterSchema | None = None
        self._counts: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        engine.on_verdict(self._guard_says_worse)

    async def push_body(
        self,
        chunks: AsyncIterator[bytes],
        options: PushOptions,
        *,
        size: int | None,
        sha256: str | None,
    ) -> PushAnswer:
        """A safetensors file as a request's body. size and sha256: as its headers claim."""
        async with self._turn(options) as push:
            limit = (await self.schema()).max_push_bytes
            if size is not None and size > limit:
                raise too_large(limit)
            with self._spool.file(push.id) as path:
                received = await receive_body(
                    chunks, path, limit=limit, stall_s=self._config.drafter_stall_s,
                    deadline=time.monotonic() + self._config.drafter_push_s,
                    share=self._share,
                )  # fmt: skip
                return await self._file(push, received, sha256)

    async def push_path(self, path: str, options: PushOptions, *, sha256: str | None) -> PushAnswer:
        """A safetensors file under `--respec-drafter-dir`."""
        if self._root is None:
            raise Refusal(
                403,
                "no_folder",
                "This server takes no paths; start it with --respec-drafter-dir FOLDER, or send "
                "the file as the body.",
            )
        root, source = self._root, Path(path)
        async with self._turn(options) as push:
            limit = (await self.schema()).max_push_bytes
            with self._spool.file(push.id) as copy:
                received = await asyncio.to_thread(
                    receive_copy, source, root, copy, limit=limit, share=self._share
                )
                return await self._file(push, received, sha256)

    async def push_group(self, group: Group, options: PushOptions) -> PushAnswer:
        """Tensors that a trainer broadcasts; it must be about to, since ranks wait for them."""
        async with self._turn(options) as push:
            schema = await self.schema()
            declared = [Declared(t.name, t.dtype, tuple(t.shape)) for t in group.tensors]
            fit = _fitting(match(schema, declared))
            push.ignored = fit.ignored
            if options.dry_run:
                return await self._answer(push, "valid")
            place = group.model_dump(exclude={"tensors"})
            tensors = [[t.name, t.dtype, t.shape] for t in group.tensors]
            return await self._swap(
                push, "stage", take=list(fit.take), group=place, tensors=tensors
            )  # fmt: skip

    async def rollback(self, to: int | None) -> RollbackAnswer:
        """Bring back the weights of an earlier version; the one before the serving by default."""
        async with self._turn(PushOptions(wait=True), counted=False) as push:
            answer = await self._restore(push, to, "rollback")
        self._metrics.rolled_back("asked")
        return answer

    async def state(self) -> dict[str, Any]:
        """Versions and their acceptance, the guard, and what became of the pushes so far."""
        schema = await self.schema()
        state = await self._call("state")
        return {
            **state,
            "pushes": dict(self._counts),
            "pushing": self._lock.locked(),
            "max_push_bytes": schema.max_push_bytes,
        }

    async def schema(self) -> DrafterSchema:
        """What the serving drafter consists of; asked for once, since swaps do not change it."""
        if self._schema is None:
            self._schema = DrafterSchema.from_dict(await self._call("schema"))
        return self._schema

    def close(self) -> None:
        self._spool.close()

    @contextlib.asynccontextmanager
    async def _turn(self, options: PushOptions, *, counted: bool = True) -> AsyncIterator[_Push]:
        """One push at a time; its result is counted, whatever it is."""
        push = _Push(options)
        try:
            await self._acquire(options.wait)
            try:
                yield push
            finally:
                self._lock.release()
        except ClientDisconnect:
            self._count("sender_left")
            raise
        except Refusal as refusal:
            if counted:
                self._count(refusal.code)
            raise

    async def _acquire(self, wait: bool) -> None:
        if self._lock.locked() and not wait:
            raise Refusal(409, "busy", "Another push is under way; give wait=true to wait for it.")
        try:
            await asyncio.wait_for(self._lock.acquire(), self._config.drafter_push_s)
        except TimeoutError as error:
            raise Refusal(409, "busy", "The push under way did not end; try again.") from error

    async def _file(self, push: _Push, file: Received, sha256: str | None) -> PushAnswer:
        """A received file, from here on the same wherever it came from."""
        push.phases.receive_ms = file.seconds * 1e3
        push.sha256, push.size = file.sha256, file.size
        if sha256 is not None and sha256.lower() != file.sha256:
            raise Refusal(
                400,
                "wrong_hash",
                f"The content's sha256 is {file.sha256} and Content-SHA256 says {sha256.lower()}; "
                "send it again.",
            )
        state = await self._call("state")
        if _serving(state)["sha256"] == push.sha256:
            return await self._answer(push, "already_serving")
        _refuse_conflicts(push, state)
        started = time.monotonic()
        fit = await asyncio.to_thread(_check, file.path, await self.schema(), Pace(self._share))
        push.phases.check_ms = (time.monotonic() - started) * 1e3
        push.ignored = fit.ignored
        if push.options.dry_run:
            return await self._answer(push, "valid")
        return await self._swap(push, "stage", take=list(fit.take), path=str(file.path))

    async def _swap(self, push: _Push, operation: str, **arguments: Any) -> PushAnswer:
        options = push.options
        answer = await self._staged_commit(
            push, operation, arguments, label=options.version, sha256=push.sha256,
            base_version=options.base_version, guard=self._guard_of(options),
        )  # fmt: skip
        if answer["status"] == "conflict":
            raise _conflict(answer["serving"])
        if answer["status"] == "same":
            return await self._answer(push, "already_serving")
        return await self._answer(push, "applied", answer)

    async def _staged_commit(
        self, push: _Push, operation: str, arguments: dict[str, Any], **commit: Any
    ) -> dict[str, Any]:
        """Stage on every rank, then commit on all of them at the same step, or on none."""
        started = time.monotonic()
        deadline = started + self._config.drafter_push_s
        await self._call(operation, push=push.id, **arguments)
        pause_s = POLL_S[0]
        while True:
            answer = await self._call("commit", push=push.id, **commit)
            if answer["status"] != "staging":
                break
            if time.monotonic() > deadline:
                await self._call("discard", push=push.id)
                raise Refusal(
                    503, "staging_failed", "Staging took too long and was given up; push again."
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_S[1])
        if answer["status"] == "failed":
            raise Refusal(
                503, "staging_failed", f"Staging failed and nothing was changed: {answer['error']}"
            )
        push.phases.commit_ms = answer.get("pause_ms", 0.0)
        push.phases.stage_ms = (time.monotonic() - started) * 1e3 - push.phases.commit_ms
        return answer

    async def _restore(self, push: _Push, to: int | None, origin: str) -> RollbackAnswer:
        number = (await self._call("earlier"))["number"] if to is None else to
        answer = await self._staged_commit(
            push, "restore", {"number": number}, restores=number, origin=origin
        )
        self._metrics.serves(answer["version"])
        return RollbackAnswer(
            version=answer["version"], restores=number, previous=answer["previous"],
            phases=push.phases,
        )  # fmt: skip

    def _guard_of(self, options: PushOptions) -> list[float]:
        """Verifies and ratio; 0 verifies is no guard."""
        verifies = options.guard_verifies or self._config.drafter_guard_verifies
        ratio = self._config.drafter_guard_ratio
        if options.guard_ratio is not None:
            ratio = options.guard_ratio
        return [verifies if options.guard == "on" else 0, ratio]

    def _guard_says_worse(self, version: int, fallback: int) -> None:
        """On the event loop, as soon as a verdict falls."""
        task = asyncio.get_running_loop().create_task(self._guard_rollback(version, fallback))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard_rollback(self, version: int, fallback: int) -> None:
        try:
            async with self._turn(PushOptions(wait=True), counted=False) as push:
                if (await self._call("state"))["serving"] != version:
                    return  # another push came in between, and is watched itself
                answer = await self._restore(push, fallback, "guard")
        except RespecError as error:
            self._metrics.rolled_back("failed")
            logger.error("respec: version %d stays, worse as it is: %s", version, error)  # noqa: TRY400
            return
        self._metrics.rolled_back("guard")
        logger.warning("respec: the guard took version %d back; %d serves, with the weights of %d.",
                       version, answer.version, answer.restores)  # fmt: skip

    async def _answer(
        self, push: _Push, status: str, committed: dict[str, Any] | None = None
    ) -> PushAnswer:
        self._count(status)
        if committed is not None:
            self._metrics.took(push.phases)
            self._metrics.serves(committed["version"])
            version, previous = committed["version"], committed["previous"]
        else:
            version, previous = (await self._call("state"))["serving"], None
        return PushAnswer(
            applied=committed is not None, status=status, version=version, previous=previous,  # type: ignore[arg-type]
            label=push.options.version, sha256=push.sha256, bytes=push.size,
            ignored=list(push.ignored), phases=push.phases,
            guard=committed["guard"] if committed else None,
        )  # fmt: skip

    async def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            return await self._engine.call(operation, **arguments)
        except RespecError as error:
            status, code = _ENGINE_REFUSALS[operation]
            raise Refusal(status, code, str(error)) from error

    def _count(self, result: str) -> None:
        self._counts[result] += 1
        self._metrics.ended(result)


_ENGINE_REFUSALS = {
    "schema": (404, "no_drafter"),
    "state": (404, "no_drafter"),
    "earlier": (404, "not_kept"),
    "restore": (404, "not_kept"),
    "stage": (503, "staging_failed"),
    "commit": (503, "staging_failed"),
    "discard": (503, "staging_failed"),
}


def _check(path: Path, schema: DrafterSchema, pace: Pace) -> Match:
    """Structure, then names, shapes and types, then values: each costs more than the one before."""
    try:
        layout: dict[str, Tensor] = read_layout(path)
        fit = _fitting(match(schema, (Declared(t.name, t.dtype, t.shape) for t in layout.values())))
        problems = value_problems(path, layout, fit, schema, pace)
    except BadFile as error:
        raise Refusal(400, "bad_file", str(error)) from error
    if problems:
        raise wrong_tensors(problems)
    return fit


def _fitting(result: Any) -> Match:
    if isinstance(result, Match):
        return result
    raise wrong_tensors(result)


def _serving(state: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in state["versions"] if each["serving"])


def _refuse_conflicts(push: _Push, state: dict[str, Any]) -> None:
    """What is known to be in vain before the file is checked; the commit asks once more."""
    if push.options.base_version not in (None, state["serving"]):
        raise _conflict(state["serving"])
    worse = [
        each["number"] for each in state["versions"]
        if each["sha256"] == push.sha256 and each["verdict"] == "worse"
    ]  # fmt: skip
    if worse and push.options.guard == "on":
        raise Refusal(
            409,
            "rolled_back",
            f"These weights served as version {worse[0]} and the guard found them worse; give "
            "guard=off to serve them anyway.",
        )


def _conflict(serving: int) -> Refusal:
    return Refusal(
        409,
        "conflict",
        f"Version {serving} serves, which is not the base_version of this push; look at GET "
        "/drafter and push again.",
    )


def _open_spool(folder: str) -> Spool:
    try:
        return Spool(folder)
    except OSError as error:
        raise RespecError(
            f"The setting drafter_spool_dir, {folder or 'the system default'}, cannot be written "
            f"({error.strerror}); name another folder."
        ) from error


def _existing(folder: str) -> Path | None:
    if not folder:
        return None
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise RespecError(
            f"The setting drafter_dir, {folder}, is not a folder; create it or name another."
        )
    return path
