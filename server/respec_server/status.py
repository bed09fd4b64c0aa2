"""`respec status`: what a running server says about itself."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from sglang_respec.errors import RespecError

TIMEOUT_S = 10.0
NOT_THERE = 404


class ServerUnreachable(RespecError):  # noqa: N818 (it is what happened, not a kind of error)
    """Nobody answers at this address, or not an SGLang server."""


@dataclasses.dataclass(frozen=True)
class ServerStatus:
    """One answer of one server; sums over its data-parallel ranks. None means it did not say."""

    url: str
    models: tuple[str, ...]
    sglang_version: str | None
    drafter: str | None
    algorithm: str | None
    speculation: str | None  # "steps,topk,draft_tokens"
    running_requests: int
    waiting_requests: int
    tokens_per_s: float  # of the last decode log interval
    accepted_length: float | None  # tokens committed per verify since the start, bonus included
    kv_used_tokens: int
    kv_total_tokens: int
    prefill_busy_s: float  # since the start


def fetch_status(url: str, *, api_key: str | None = None) -> ServerStatus:
    """Ask a running SGLang server; raises :class:`ServerUnreachable` in one sentence."""
    base = url.rstrip("/")
    with _asking(base, api_key) as client:
        models = _get(client, "/v1/models")
        info = _get(client, "/server_info")
        loads = _get(client, "/v1/loads").get("loads", [])
    return _status(base, models, info, loads)


def fetch_plan(
    url: str, *, api_key: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The answers of `/respec/state` and `/respec/plan`; None of a server that plans nothing.

    Raises :class:`ServerUnreachable` in one sentence.
    """
    with _asking(url.rstrip("/"), api_key) as client:
        if client.get("/respec/state").status_code == NOT_THERE:
            return None
        return _get(client, "/respec/state"), _get(client, "/respec/plan")


@contextmanager
def _asking(base: str, api_key: str | None) -> Iterator[httpx.Client]:
    """A client of this server; what goes wrong becomes one sentence."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(
            base_url=base, headers=headers, timeout=TIMEOUT_S, trust_env=False
        ) as client:
            yield client
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        remedy = "give --api-key" if code in (401, 403) else "is it an SGLang server?"
        raise ServerUnreachable(
            f"{base} answers {code} to {error.request.url.path}; {remedy}"
        ) from error
    except httpx.TimeoutException as error:
        raise ServerUnreachable(
            f"The server at {base} does not answer within {TIMEOUT_S:.0f} s; it may be starting or "
            "overloaded, so ask again or read its log."
        ) from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ServerUnreachable(
            f"No server answers at {base}; start one with `respec serve`, or give its --url."
        ) from error
    except (ValueError, AttributeError) as error:
        raise ServerUnreachable(f"What answers at {base} is not an SGLang server.") from error


def show_status(url: str, *, api_key: str | None = None, as_json: bool = False) -> int:
    """Print the status; 1 when there is none."""
    try:
        status = fetch_status(url, api_key=api_key)
    except ServerUnreachable as error:
        sys.stderr.write(f"respec: {error}\n")
        return 1
    if as_json:
        sys.stdout.write(json.dumps(dataclasses.asdict(status), indent=2) + "\n")
    else:
        Console(soft_wrap=True).print(status_table(status))
    return 0


def _get(client: httpx.Client, path: str) -> dict[str, Any]:
    answer = client.get(path).raise_for_status().json()
    if not isinstance(answer, dict):
        raise ValueError(f"{path} is not a JSON object")  # noqa: TRY004 (caught as one kind)
    return answer


def _status(
    url: str, models: dict[str, Any], info: dict[str, Any], loads: list[dict[str, Any]]
) -> ServerStatus:
    speculative = [each["speculative"] for each in loads if each.get("speculative")]
    states = [each for each in info.get("internal_states", []) if isinstance(each, dict)]
    # internal_states moves with every request, the load snapshot only now and then.
    lengths = [
        each["avg_spec_accept_length"] for each in states if each.get("avg_spec_accept_length")
    ] or [each["accept_length"] for each in speculative]
    shape = [
        info.get(f"speculative_{name}") for name in ("num_steps", "eagle_topk", "num_draft_tokens")
    ]
    return ServerStatus(
        url=url,
        models=tuple(str(each.get("id")) for each in models.get("data", [])),
        sglang_version=info.get("version"),
        drafter=info.get("speculative_draft_model_path"),
        algorithm=info.get("speculative_algorithm"),
        speculation=None if None in shape else ",".join(str(each) for each in shape),
        running_requests=_sum(loads, "num_running_reqs"),
        waiting_requests=_sum(loads, "num_waiting_reqs"),
        tokens_per_s=float(sum(each.get("last_gen_throughput") or 0.0 for each in states)),
        accepted_length=sum(lengths) / len(lengths) if lengths else None,
        kv_used_tokens=_sum(loads, "num_used_tokens"),
        kv_total_tokens=_sum(loads, "max_total_num_tokens"),
        prefill_busy_s=_sum(loads, "total_prefill_busy_us") / 1e6,
    )


def _sum(loads: list[dict[str, Any]], name: str) -> int:
    return sum(int(each.get(name) or 0) for each in loads)


def status_table(status: ServerStatus) -> Table:
    used, total = status.kv_used_tokens, status.kv_total_tokens
    rows = [
        ("server", f"{status.url} (SGLang {status.sglang_version or '?'})"),
        ("model", ", ".join(status.models) or "?"),
        ("drafter", status.drafter or "none"),
        ("speculation", f"{status.algorithm} {status.speculation or ''}" if status.algorithm
         else "none, plain decoding"),
        ("requests", f"{status.running_requests} running, {status.waiting_requests} waiting"),
        ("tokens/s", f"{status.tokens_per_s:.1f} in the last log interval"),
        ("accepted length", "-" if status.accepted_length is None
         else f"{status.accepted_length:.2f} tokens per verify since the start"),
        ("KV cache", f"{used} of {total} tokens" + (f" ({used / total:.0%})" if total else "")),
    ]  # fmt: skip
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", value)
    return table
