"""A running server as the learner's sink: the routes of docs/update-drafter.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from respec_server.client import BLOCK_BYTES, PASSING
from sglang_respec.errors import RespecError
from sglang_respec.learner.publisher import (
    Serving,
    SinkUnavailable,
    VersionConflict,
    WeightsRefused,
)

TIMEOUT_S = 600.0  # for one push, without an answer
LOOK_S = 30.0  # for asking what serves


class HttpSink:
    """One server. See `WeightSink`."""

    def __init__(
        self, url: str, admin_key: str | None = None, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise RespecError(f"{url!r} is no address of a server; give http://HOST:PORT.")
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}
        self._timeout_s = timeout_s

    def serving(self) -> Serving:
        answer = self._ask("GET", "/drafter", timeout_s=min(LOOK_S, self._timeout_s))
        if not answer.is_success:
            raise SinkUnavailable(f"{self.url} answers GET /drafter with {_sentence(answer)}")
        state = _object(answer)
        try:
            records = {int(each["number"]): each for each in state["versions"]}
            return Serving(state["serving"], str(records[state["serving"]]["sha256"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SinkUnavailable(f"{self.url} does not speak of its drafter as we do") from error

    def push(self, weights: Path, *, sha256: str, label: str, base_version: int) -> Serving:
        query = {"version": label, "base_version": str(base_version), "wait": "true"}
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(weights.stat().st_size),
            "Content-SHA256": sha256,
        }
        with weights.open("rb") as file:
            blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
            answer = self._ask(
                "POST", "/update_drafter", params=query, headers=headers, content=blocks
            )
        if answer.is_success:
            return Serving(int(_object(answer)["version"]), sha256)
        code = _code(answer)
        if code == "conflict":
            raise VersionConflict(_sentence(answer))
        if code == "busy" or answer.status_code in PASSING or answer.status_code >= 500:
            raise SinkUnavailable(_sentence(answer))
        raise WeightsRefused(_sentence(answer))

    def _ask(
        self, method: str, path: str, *, timeout_s: float | None = None, **request: Any
    ) -> httpx.Response:
        headers = {**self._headers, **request.pop("headers", {})}
        try:
            with httpx.Client(timeout=timeout_s or self._timeout_s, trust_env=False) as client:
                return client.request(method, self.url + path, headers=headers, **request)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise SinkUnavailable(f"{self.url} does not answer: {reason}") from error


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError as error:
        raise SinkUnavailable(f"{answer.url} answers something else than JSON") from error
    if not isinstance(found, dict):
        raise SinkUnavailable(f"{answer.url} answers no JSON object")
    return found


def _error(answer: httpx.Response) -> dict[str, Any]:
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _code(answer: httpx.Response) -> str:
    return str(_error(answer).get("code", ""))


def _sentence(answer: httpx.Response) -> str:
    return f"{answer.status_code}: {_error(answer).get('message', answer.text[:200])}"
