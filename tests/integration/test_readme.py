"""What the README tells a newcomer to type, typed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from serving import Servers, speculation

from respec_server.process import free_port

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
UPDATE_DRAFTER = (ROOT / "docs" / "update-drafter.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
URL = "http://127.0.0.1:30000"


def blocks(language: str, *marks: str, text: str = README) -> list[str]:
    found = [
        block for kind, block in BLOCK.findall(text)
        if kind == language and all(each in block for each in marks)
    ]  # fmt: skip
    assert found, f"there is no {language or 'shell'} block with {marks}"
    return found


def serving(url: str) -> int:
    answer = httpx.get(f"{url}/drafter", timeout=60, trust_env=False)
    return int(answer.json()["serving"])


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


def test_a_drafter_is_pushed_from_pytorch(url: str) -> None:
    (program,) = blocks("python", "PushFailed")
    before = serving(url)
    assert f"{url}: version {before + 1}" in run([sys.executable, "-c", program.replace(URL, url)])
    assert serving(url) == before + 1

    wrong = program.replace("*= 1.01", "= drafter['norm.weight'][:-1].clone()")
    told = run([sys.executable, "-c", wrong.replace(URL, url)])
    assert "norm.weight" in told
    assert "'expected': '[192]'" in told
    assert serving(url) == before + 1


def test_a_drafter_is_pushed_by_a_process_group(url: str) -> None:
    (program,) = blocks("python", "push_group")
    before = serving(url)
    program = program.replace(URL, url).replace("29600", str(free_port()))
    assert "'applied': True" in run([sys.executable, "-c", program])
    assert serving(url) == before + 1


def test_a_drafter_is_pushed_by_a_process_group_in_plain_torch(url: str) -> None:
    """The block of docs/update-drafter.md, with the names that it leaves to the reader."""
    (program,) = blocks("python", "ProcessGroupGloo", text=UPDATE_DRAFTER)
    names = (
        "from safetensors.torch import load_file\n"
        "MY_ADDRESS = '127.0.0.1'\n"
        "class drafter:\n"
        "    state_dict = lambda: load_file("
        "'sglang_respec/demo_models/drafter/model.safetensors')\n"
    )
    before = serving(url)
    program = program.replace("http://node-a:30000", url).replace("29600", str(free_port()))
    assert "'applied': True" in run([sys.executable, "-c", names + program])
    assert serving(url) == before + 1


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
