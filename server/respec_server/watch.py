"""`respec status --watch`: what a server runs and why, looked at again and again."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from respec_server.plan_text import plan_tables
from respec_server.status import ServerUnreachable, fetch_plan, fetch_status, status_table
from sglang_respec.errors import RespecError

LEAST_S = 0.01
NOTHING_PLANNED = "This server has no drafter of this extension, and plans nothing."


def watch(
    url: str, *, every_s: float = 1.0, looks: int | None = None, api_key: str | None = None
) -> int:
    """Show the tables until interrupted, or `looks` times; 1 when the server does not answer.

    On a terminal they stay in place. Elsewhere each is printed below the one before.
    """
    if not every_s >= LEAST_S or (looks is not None and looks < 1):
        raise RespecError(f"--watch takes {LEAST_S} seconds or more, and --count 1 or more.")
    console = Console(soft_wrap=True)
    try:
        if not console.is_terminal:
            for shown in _looks(url, every_s, looks, api_key):
                console.print(shown)
            return 0
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for shown in _looks(url, every_s, looks, api_key):
                live.update(shown, refresh=True)
    except ServerUnreachable as error:
        sys.stderr.write(f"respec: {error}\n")
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _looks(url: str, every_s: float, looks: int | None, api_key: str | None) -> Iterator[Group]:
    earlier: dict[str, Any] | None = None
    for look in itertools.count(1):
        status = status_table(fetch_status(url, api_key=api_key))
        planned = fetch_plan(url, api_key=api_key)
        if planned is None:
            yield Group(status, Text(), Text(NOTHING_PLANNED), Text())
        else:
            state, plan = planned
            yield Group(status, Text(), plan_tables(state, plan, earlier), Text())
            earlier = state
        if look == looks:
            return
        time.sleep(every_s)
