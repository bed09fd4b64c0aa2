"""SGLang's own serving benchmark, unchanged, against a speculative server."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from serving import Servers, speculation

from respec_server.bundled import demo_models

pytestmark = pytest.mark.server

# SGLang averages the accepted length every 40 rounds.
REQUESTS, OUTPUT_TOKENS = 12, 160


def test_bench_serving(servers: Servers, tmp_path: Path) -> None:
    server = servers.get(*speculation(5, 1, 6), program="sglang")
    figures = tmp_path / "figures.jsonl"
    command = [
        *servers.python("-m", "sglang.bench_serving"),
        *("--backend", "sglang", "--base-url", server.url),
        *("--tokenizer", str(demo_models()[0])),
        *("--dataset-name", "random-ids", "--random-range-ratio", "1.0"),
        *("--random-input-len", "40", "--random-output-len", str(OUTPUT_TOKENS)),
        *("--num-prompts", str(REQUESTS), "--output-file", str(figures)),
    ]
    environ = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    measured = json.loads(figures.read_text())
    assert measured["completed"] == REQUESTS
    assert measured["total_output_tokens"] == REQUESTS * OUTPUT_TOKENS
    assert measured["accept_length"] > 1, "the benchmark sees that the server speculates"
