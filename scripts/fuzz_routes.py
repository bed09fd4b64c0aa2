"""Requests of every kind to the drafter routes of a running server, held against its OpenAPI.

    python scripts/fuzz_routes.py --url http://127.0.0.1:30000 --examples 2000

schemathesis makes the requests: examples, borders of every parameter, random ones that are right or
wrong in one place, and sequences. Each answer must be one that the OpenAPI document promises, in
status, type and schema. The server may be left with another drafter: some of the files fit.
Ends with 1 if an answer was not as promised.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import schemathesis
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

TAG = "drafter"
FILE_TYPE = "application/octet-stream"
# What may be answered to a request that OpenAPI calls right: no key was given, a version is gone,
# another push is under way, a rank or a disk is full.
MAY_REFUSE = [200, 401, 403, 404, 409, 503, 507]
# Of a file, OpenAPI says only that it is bytes, and of JSON not that `path` excludes `group`.
MAY_REFUSE_A_FILE = [*MAY_REFUSE, 400, 408, 413, 415, 422]


@dataclass
class Fuzzed:
    """What was asked and what was wrong."""

    answers: Counter[str] = field(default_factory=Counter)  # "POST /update_drafter 422" -> count
    failures: list[str] = field(default_factory=list)  # one of each kind
    errors: list[str] = field(default_factory=list)  # of the fuzzer or the connection

    @property
    def requests(self) -> int:
        return sum(self.answers.values())


def fuzz(
    url: str,
    *,
    examples: int,
    file: bytes,
    seed: int = 0,
    admin_key: str | None = None,
    document: dict[str, Any] | None = None,
) -> Fuzzed:
    """Fuzz the drafter routes at `url`.

    examples: random requests per route and phase. file: a safetensors file that fits; it is sent
    whole, cut and altered. document: the OpenAPI document; asked of the server when absent.
    """
    if document is None:
        document = httpx.get(f"{url}/openapi.json", timeout=60, trust_env=False).json()
    schemathesis.openapi.media_type(FILE_TYPE, files(file))
    headers = {"Authorization": f"Bearer {admin_key}"} if admin_key else {}
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "base-url": url,
            "headers": headers,
            "request-timeout": 60,
            "request-retries": 2,  # an idle connection is closed by the server after seconds
            "continue-on-failure": True,
            "generation": {"max-examples": examples, "deterministic": False, "database": "none"},
            "checks": {
                "positive_data_acceptance": {"expected-statuses": MAY_REFUSE},
                "not_a_server_error": {"expected-statuses": ["2xx", "4xx", 503, 507]},
            },
            "operations": [
                {
                    "include-path": "/update_drafter",
                    "checks": {
                        "positive_data_acceptance": {"expected-statuses": MAY_REFUSE_A_FILE}
                    },
                }
            ],
        }
    )
    schema = schemathesis.openapi.from_dict(ours(document), config=config)
    return _collected(from_schema(schema).execute())


def ours(document: dict[str, Any]) -> dict[str, Any]:
    """The part of an OpenAPI document that describes the drafter routes."""
    paths = {
        path: methods
        for path, methods in document["paths"].items()
        if any(TAG in each.get("tags", ()) for each in methods.values())
    }
    return {**document, "paths": paths}


def files(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file that fits, cut anywhere, altered anywhere in its first bytes, and noise."""
    header = min(len(whole), 4096)
    altered = st.tuples(st.integers(0, header - 1), st.binary(min_size=1, max_size=8)).map(
        lambda each: whole[: each[0]] + each[1] + whole[each[0] + len(each[1]) :]
    )
    cut = st.integers(0, len(whole)).map(lambda length: whole[:length])
    return st.just(whole) | cut | altered | st.binary(max_size=300)


def _collected(stream: Iterator[events.EngineEvent]) -> Fuzzed:
    found = Fuzzed()
    seen: set[str] = set()
    for event in stream:
        if isinstance(event, events.ScenarioFinished):
            for key, interaction in event.recorder.interactions.items():
                case = event.recorder.cases[key].value
                status = interaction.response.status_code if interaction.response else "no answer"
                found.answers[f"{case.method} {case.operation.path} {status}"] += 1
            for checks in event.recorder.checks.values():
                for check in checks:
                    if check.failure_info is None:
                        continue
                    failure = check.failure_info.failure
                    kind = f"{failure.operation}: {check.name}: {failure.title}"
                    if kind not in seen:
                        seen.add(kind)
                        sample = check.failure_info.code_sample
                        found.failures.append(f"{kind}\n{failure.message}\n{sample}")
        elif isinstance(event, events.NonFatalError):
            found.errors.append(f"{event.label}: {event.value!r}")
        elif isinstance(event, events.FatalError):
            found.errors.append(repr(event.exception))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument("--examples", type=int, default=200, help="random requests per route")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--admin-key")
    parser.add_argument("--file", help="a safetensors file that fits; default the bundled drafter")
    options = parser.parse_args()
    found = fuzz(
        options.url, examples=options.examples, file=_file(options.file), seed=options.seed,
        admin_key=options.admin_key,
    )  # fmt: skip
    for answer, count in sorted(found.answers.items()):
        print(f"{count:7}  {answer}")
    for each in (*found.failures, *found.errors):
        print(f"\n{each}")
    print(f"{found.requests} requests, {len(found.failures)} failures, {len(found.errors)} errors")
    return 1 if found.failures or found.errors or not found.requests else 0


def _file(path: str | None) -> bytes:
    from pathlib import Path

    from respec_server.bundled import demo_models

    return (Path(path) if path else demo_models()[1] / "model.safetensors").read_bytes()


if __name__ == "__main__":
    sys.exit(main())
