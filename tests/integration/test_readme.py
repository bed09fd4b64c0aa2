"""What the README tells a newcomer to type, typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Servers, speculation

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
URL = "http://127.0.0.1:30000"


def blocks(language: str, mark: str) -> list[str]:
    found = [text for kind, text in BLOCK.findall(README) if kind == language and mark in text]
    assert found, f"the README has no {language or 'shell'} block with {mark}"
    return found


@pytest.fixture(scope="module")
def url(servers: Servers) -> str:
    return servers.get(*speculation(5, 1, 6)).url


def run(command: list[str]) -> str:
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_rollout_is_replayed(url: str) -> None:
    (command,) = blocks("", "/generate")
    answer = json.loads(run(["bash", "-c", command.replace(URL, url)]))
    seed = answer["meta_info"]["sampling_seed"]
    again = command.replace(URL, url).replace(
        '"temperature": 1.0', f'"temperature": 1.0, "sampling_seed": {seed}'
    )
    assert json.loads(run(["bash", "-c", again]))["output_ids"] == answer["output_ids"]


def test_a_drafter_is_pushed_with_curl(url: str) -> None:
    (command,) = blocks("", "--data-binary")
    answer = json.loads(run(["bash", "-c", command.replace(URL, url)]))
    assert answer["status"] in ("applied", "already_serving"), answer
    assert answer["sha256"]


def test_a_drafter_is_pushed_from_python(url: str) -> None:
    (program,) = blocks("python", "DrafterClient")
    assert "version" in run([sys.executable, "-c", program.replace(URL, url)])


def test_every_command_is_one_that_exists() -> None:
    listed = re.findall(r"^\| `respec (\w+)` \|", README, re.MULTILINE)
    shown = run([sys.executable, "-m", "respec_server", "--help"])
    assert listed
    assert all(re.search(rf"^  {name}\b", shown, re.MULTILINE) for name in listed)


def test_every_verb_is_one_of_the_makefile() -> None:
    verbs = set(re.findall(r"^make ([a-z][a-z-]*)", README, re.MULTILINE))
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert verbs
    assert verbs <= targets
