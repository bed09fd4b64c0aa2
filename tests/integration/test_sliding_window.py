"""Sliding windows and capped scores, against Hugging Face's own code on the same weights."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rollouts import generate
from serving import Servers

pytestmark = pytest.mark.server

POOL_OF_SLIDING_LAYERS = {"gemma": False, "mellum": True}


@pytest.fixture(scope="module")
def models(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of the models, and the tokens that are expected of them."""
    folder = tmp_path_factory.mktemp("sliding")
    script = Path(__file__).with_name("sliding_model.py")
    environ = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(servers.python(str(script), str(folder)), env=environ, check=True, timeout=300)
    return folder, json.loads((folder / "expected.json").read_text())


@pytest.mark.parametrize("name", POOL_OF_SLIDING_LAYERS)
def test_the_features_matter_here(name: str, models: tuple[Path, Any]) -> None:
    """Without one of them every prompt continues differently, so that its loss shows."""
    _, found = models
    variants = found["expected"][name]
    expected = variants["as it is"]
    assert all(len(set(tokens)) > 5 for tokens in expected)
    for variant in variants.keys() - {"as it is"}:
        pairs = zip(expected, variants[variant], strict=True)
        assert all(mine != theirs for mine, theirs in pairs), variant


@pytest.mark.parametrize("name", POOL_OF_SLIDING_LAYERS)
def test_tokens_are_those_of_transformers(
    name: str, servers: Servers, models: tuple[Path, Any]
) -> None:
    folder, found = models
    # Prompts are prefilled in parts, so that a window reaches back into an earlier one.
    server = servers.get("--model-path", str(folder / name), "--chunked-prefill-size", "40")
    assert ("hybrid_swa=True" in server.log.read_text()) == POOL_OF_SLIDING_LAYERS[name]
    expected = [tuple(tokens) for tokens in found["expected"][name]["as it is"]]
    sampling = {"temperature": 0.0, "max_new_tokens": len(expected[0]), "ignore_eos": True}
    for concurrency in (1, len(expected)):
        batch = generate(server.url, found["prompts"], sampling, concurrency=concurrency)
        assert batch.token_lists == expected
