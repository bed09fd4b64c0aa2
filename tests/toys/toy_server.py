"""The toy drafter's server as a process of its own, to be killed: `toy_server.py SPOOL GATE`.

Prints its URL, and stages nothing until the file GATE exists.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from drafter_toys import wait_until
from local_server import serve_local


def main(spool: str, gate: str) -> None:
    with serve_local(drafter_spool_dir=spool) as server:
        server.engine.before_staging.append(lambda _: wait_until(Path(gate).exists))
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
