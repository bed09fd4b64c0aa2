"""Enter every hook into SGLang and report, as one line of JSON. `respec doctor` runs this.

A process of its own, because importing SGLang takes half a minute and changes the process.
"""

from __future__ import annotations

import dataclasses
import json
import sys

MARK = "respec-hooks "


def main() -> int:
    from sglang_respec import plugin

    plugin.register()  # exits with a sentence if a hook is lost

    from sglang_respec.upstream.activation import activation_report

    report = [dataclasses.asdict(status) for status in activation_report()]
    sys.stdout.write(f"\n{MARK}{json.dumps(report)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
