"""Real servers, started once per session and shared by every test that asks for the same one."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from respec_server.bundled import demo_models
from sglang_respec.demo_task import make_problem

# The load generator of the benchmarks, and this folder's own `serving`.
sys.path += [str(Path(__file__).parents[2] / "scripts"), str(Path(__file__).parent)]

from serving import Servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    pool = Servers(tmp_path_factory.mktemp("servers"))
    yield pool
    pool.stop()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_models()[0] / "tokenizer.json"))


@pytest.fixture(scope="session")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    """64 held-out problems as chat turns; every fourth repeats a long shared preamble."""
    preamble = "Here is a note you can ignore. " * 6
    texts = []
    for seed in range(64):
        note = preamble if seed % 4 == 0 else ""
        question = note + make_problem(seed, "held_out").prompt
        texts.append(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
