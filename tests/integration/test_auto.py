"""The policy auto: step times measured at the start, kept for the next, the same on every rank."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
from rollouts import generate
from serving import Servers, speculation, two_devices
from step_log import StepLogFile

from respec_server.process import ServerFailed, ServerProcess
from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.planner import Profile
from sglang_respec.planner.contest import load_profile

pytestmark = pytest.mark.server

REQUESTS = 24
GREEDY = {"temperature": 0.0, "max_new_tokens": 64, "ignore_eos": True}
SHAPES = {PLAIN, *(SpeculationConfig(steps, 1, steps + 1) for steps in (1, 2, 3))}
MEASURED, FOUND = "respec: measured step times", "respec: step times measured at an earlier start"
Tokens = list[tuple[int, ...]]


def flags(folder: Path, log: StepLogFile) -> list[str]:
    return [
        *speculation(3, 1, 4),
        *("--max-running-requests", "16", "--max-total-tokens", "4096"),
        *("--respec-policy", "auto", "--respec-profile-dir", str(folder)),
        *("--respec-profile-seconds", "2", *log.flags),
    ]


@pytest.fixture(scope="module")
def plain_tokens(servers: Servers, prompts: list[list[int]]) -> Tokens:
    url = servers.get(stock=True).url
    return generate(url, prompts[:REQUESTS], GREEDY, concurrency=8).token_lists


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> StepLogFile:
    return StepLogFile(tmp_path_factory.mktemp("steps") / "auto.jsonl")


@pytest.fixture(scope="module")
def server(servers: Servers, folder: Path, log: StepLogFile, plain_tokens: Tokens) -> ServerProcess:
    return servers.get(*flags(folder, log))


def profile_in(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def started_again(
    servers: Servers, folder: Path, tmp_path: Path, *more: str
) -> tuple[ServerProcess, str]:
    """A further start over the same folder, and what it wrote until it was ready."""
    server = servers.get(*flags(folder, StepLogFile(tmp_path / "again.jsonl")), *more)
    return server, server.log.read_text(encoding="utf-8")


def test_it_measures_and_keeps_what_it_measured(server: ServerProcess, folder: Path) -> None:
    assert server.log.read_text(encoding="utf-8").count(MEASURED) == 1
    profile = Profile.load(profile_in(folder))
    assert profile.kind == "measured"
    assert set(profile.rounds) == SHAPES
    assert profile.extend_seconds(64, 1, 128.0) > 0
    for batch in (1, 16):
        one, *longer = (
            profile.round_seconds(SpeculationConfig(steps, 1, steps + 1), batch, 128.0)
            for steps in (1, 3)
        )
        assert profile.round_seconds(PLAIN, batch, 128.0) < one < longer[0]


def test_tokens_are_those_of_plain_decoding(
    server: ServerProcess, log: StepLogFile, prompts: list[list[int]], plain_tokens: Tokens
) -> None:
    """All at once, then one by one: the dummy batches left no slot taken and no state behind."""
    crowd = generate(server.url, prompts[:REQUESTS], GREEDY, concurrency=16, stagger_s=0.01)
    assert crowd.token_lists == plain_tokens
    alone = generate(server.url, prompts[:4], GREEDY, concurrency=1)
    assert alone.token_lists == plain_tokens[:4]
    steps = log.new_steps().steps  # since the start, SGLang's own warm-up among them
    configs = {SpeculationConfig.parse(step["config"]) for step in steps}
    assert PLAIN in configs
    assert len(configs) > 1
    assert configs <= SHAPES
    assert sum(step["probed_requests"] for step in steps) > 0, "the first step asks for guesses"
    assert "leak" not in server.log.read_text(encoding="utf-8")


def test_a_later_start_finds_them(
    server: ServerProcess, servers: Servers, folder: Path, tmp_path: Path
) -> None:
    before = profile_in(folder).read_bytes()
    _, text = started_again(servers, folder, tmp_path)
    assert FOUND in text
    assert MEASURED not in text
    assert profile_in(folder).read_bytes() == before


def of_another_model(path: Path) -> str:
    document = json.loads(path.read_text(encoding="utf-8"))
    document["key"]["target"] = "another"
    path.write_text(json.dumps(document), encoding="utf-8")
    return "was made for target 'another' instead of"


def cut_short(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:100])
    return "is not JSON"


@pytest.mark.parametrize("spoil", [of_another_model, cut_short])
def test_what_is_no_use_is_measured_anew(
    spoil, server: ServerProcess, servers: Servers, folder: Path, tmp_path: Path
) -> None:
    path = profile_in(folder)
    sentence = spoil(path)
    _, text = started_again(servers, folder, tmp_path)
    assert sentence in text
    assert "It is measured anew." in text
    assert MEASURED in text
    assert set(Profile.load(path).rounds) == SHAPES


def test_a_file_of_another_model_stops_the_server(
    servers: Servers, folder: Path, tmp_path: Path
) -> None:
    """Named by a flag it was meant; to serve by it or without it would not be what was asked."""
    file = tmp_path / "another.json"
    load_profile("cpu_demo_pair").save(file)
    with pytest.raises(
        ServerFailed, match="was made for target 'bundled target' instead of"
    ) as failed:
        started_again(servers, folder, tmp_path, "--respec-profile", str(file))
    assert "The server stops." in str(failed.value)
    assert "Traceback" not in str(failed.value)


@two_devices
def test_two_ranks_decide_alike(
    servers: Servers, tmp_path: Path, prompts: list[list[int]], plain_tokens: Tokens
) -> None:
    log = StepLogFile(tmp_path / "ranks.jsonl")
    server = servers.get(
        *flags(tmp_path / "profiles", log),
        *("--tp-size", "2"),
        environ={"SGLANG_CPU_OMP_THREADS_BIND": "0|1"},
    )
    found = generate(server.url, prompts[:REQUESTS], GREEDY, concurrency=8, stagger_s=0.02)
    # Two ranks sum in another order, so that a near tie may fall the other way.
    same = sum(a == b for a, b in zip(found.token_lists, plain_tokens, strict=True))
    assert same >= REQUESTS - 2
    by_rank = defaultdict(list)
    for step in log.new_steps().steps:
        by_rank[step["process"]].append((step["config"], step["reason"], step["seconds"]))
    assert len(by_rank) == 2
    one, other = by_rank.values()
    assert one == other
    assert len({config for config, _, _ in one}) > 1, "they changed together"
