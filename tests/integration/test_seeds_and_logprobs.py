"""What comes back with a sampled token: the seed that drew it and its log-probabilities."""

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from custom_processors import BANNED
from rollouts import generate
from serving import Servers, speculation

from respec_server.process import ServerProcess
from sglang_respec.sampling.seeds import sample_seed

pytestmark = pytest.mark.server

TOKENS = 24
SAMPLED = {"temperature": 1.0, "max_new_tokens": TOKENS, "ignore_eos": True}
# See test_openai_client.py: the same logits in other matrix shapes.
LOGPROB_TOLERANCE = 5e-4


@pytest.fixture(scope="module")
def chain(servers: Servers) -> ServerProcess:
    return servers.get(*speculation(5, 1, 6), "--enable-custom-logit-processor")


@pytest.fixture(scope="module")
def tree(servers: Servers) -> ServerProcess:
    return servers.get(*speculation(4, 4, 12), "--enable-custom-logit-processor")


@pytest.fixture(scope="module")
def plain(servers: Servers) -> ServerProcess:
    return servers.get("--enable-custom-logit-processor")


@pytest.fixture(scope="module")
def processors(servers: Servers) -> dict[str, str]:
    source = Path(__file__).with_name("custom_processors.py")
    done = subprocess.run(
        servers.python(str(source)), capture_output=True, text=True, check=True, timeout=300
    )
    texts: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return texts


def ask(server: ServerProcess, prompt: list[int], **request: Any) -> Any:
    sampling = {**SAMPLED, **request.pop("sampling", {})}
    body = {"input_ids": prompt, "sampling_params": sampling, **request}
    response = httpx.post(f"{server.url}/generate", json=body, timeout=120)
    response.raise_for_status()
    return response.json()


def test_a_drawn_seed_comes_back_and_replays_the_rollout(
    chain: ServerProcess, plain: ServerProcess, prompts: list[list[int]]
) -> None:
    first, second = (ask(chain, prompts[3]) for _ in range(2))
    seeds = [each["meta_info"]["sampling_seed"] for each in (first, second)]
    assert seeds[0] != seeds[1]
    assert first["output_ids"] != second["output_ids"]
    for answer, seed in zip((first, second), seeds, strict=True):
        again = ask(plain, prompts[3], sampling={"sampling_seed": seed})
        assert again["output_ids"] == answer["output_ids"]
        assert again["meta_info"]["sampling_seed"] == seed


def test_each_of_n_samples_has_a_seed_of_its_own(
    chain: ServerProcess, plain: ServerProcess, prompts: list[list[int]]
) -> None:
    asked = {"n": 4, "sampling_seed": 77}
    answers = ask(chain, prompts[5], sampling=asked)
    seeds = [each["meta_info"]["sampling_seed"] for each in answers]
    assert seeds == [sample_seed(77, sample) for sample in range(4)]
    assert len({tuple(each["output_ids"]) for each in answers}) == 4
    assert [each["output_ids"] for each in ask(plain, prompts[5], sampling=asked)] == [
        each["output_ids"] for each in answers
    ]
    alone = ask(plain, prompts[5], sampling={"sampling_seed": seeds[2]})
    assert alone["output_ids"] == answers[2]["output_ids"]


def test_a_stream_and_a_batch_name_their_seeds(
    chain: ServerProcess, prompts: list[list[int]]
) -> None:
    batch = ask(chain, prompts[:3])
    assert len({each["meta_info"]["sampling_seed"] for each in batch}) == 3
    with httpx.stream(
        "POST",
        f"{chain.url}/generate",
        json={"input_ids": prompts[0], "sampling_params": SAMPLED, "stream": True},
        timeout=120,
    ) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data: {")]
    assert '"sampling_seed":' in lines[0]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 30},
        {"temperature": 0.0},
        {"frequency_penalty": 0.5, "repetition_penalty": 1.2},
    ],
    ids=["T 1", "filtered", "greedy", "penalties"],
)
def test_logprobs_are_those_of_plain_decoding(
    sampling: dict[str, Any],
    chain: ServerProcess,
    tree: ServerProcess,
    plain: ServerProcess,
    prompts: list[list[int]],
) -> None:
    for top in (0, 4):  # without top log-probabilities they come from the sampling pass
        asked = {
            "sampling": {"sampling_seed": 5, **sampling},
            "return_logprob": True,
            "top_logprobs_num": top,
        }
        judge, *answers = (ask(each, prompts[2], **asked) for each in (plain, chain, tree))
        for answer in answers:
            assert answer["output_ids"] == judge["output_ids"]
            for key in ("output_token_logprobs", *(["output_top_logprobs"] if top else [])):
                mine, theirs = answer["meta_info"][key], judge["meta_info"][key]
                assert len(mine) == len(theirs) == TOKENS
                assert flat_logprobs(mine) == pytest.approx(
                    flat_logprobs(theirs), abs=LOGPROB_TOLERANCE
                )


def flat_logprobs(listed: list[Any]) -> list[float]:
    """Values only: of near ties among the top ones either token may come first."""
    triples = [each for row in listed for each in (row if isinstance(row[0], list) else [row])]
    return [triple[0] for triple in triples]


def test_logprobs_with_and_without_top_ones_agree(
    plain: ServerProcess, prompts: list[list[int]]
) -> None:
    asked = {"sampling": {"sampling_seed": 9, "top_p": 0.8}, "return_logprob": True}
    without, with_top = (ask(plain, prompts[1], **asked, top_logprobs_num=n) for n in (0, 2))
    pairs = [each["meta_info"]["output_token_logprobs"] for each in (without, with_top)]
    assert flat_logprobs(pairs[0]) == pytest.approx(flat_logprobs(pairs[1]), abs=1e-5)


@pytest.mark.parametrize("processor", ["BanLast", "BanSome"])
def test_a_custom_processor_sees_every_token_that_is_committed(
    processor: str,
    processors: dict[str, str],
    chain: ServerProcess,
    tree: ServerProcess,
    plain: ServerProcess,
    prompts: list[list[int]],
) -> None:
    """It must run once per token: drafts past the root would not have been seen by it.

    One that reads what its request has generated is late by a token in SGLang's overlapped plain
    decoding, so only the other is held against that.
    """
    asked = {
        "custom_logit_processor": processors[processor],
        "sampling": {"sampling_seed": 3, "custom_params": {}},
    }
    answers = [ask(each, prompts[4], **asked) for each in (chain, tree)]
    if processor == "BanSome":
        answers.append(ask(plain, prompts[4], **asked))
    assert all(each["output_ids"] == answers[0]["output_ids"] for each in answers)
    for answer in answers[:2]:
        assert answer["meta_info"]["spec_verify_ct"] == TOKENS - 1, "one token per verify"
    tokens = answers[0]["output_ids"]
    if processor == "BanLast":
        assert all(a != b for a, b in itertools.pairwise(tokens))
    else:
        assert not set(tokens) & BANNED
    others = generate(tree.url, prompts[4:6], [{**SAMPLED, "sampling_seed": 3}] * 2, concurrency=2)
    assert all(each.verifies < TOKENS - 1 for each in others.rollouts), "others go on speculating"


@pytest.mark.parametrize("mode", ["plain", "tree"])
def test_a_row_of_nan_fails_its_request_alone(
    mode: str,
    processors: dict[str, str],
    tree: ServerProcess,
    plain: ServerProcess,
    prompts: list[list[int]],
) -> None:
    server = tree if mode == "tree" else plain
    good = {"input_ids": prompts[0], "sampling_params": {**SAMPLED, "sampling_seed": 1}}
    bad = {**good, "custom_logit_processor": processors["GiveNan"]}
    bad["sampling_params"] = {**SAMPLED, "custom_params": {}}
    before = httpx.post(f"{server.url}/generate", json=good, timeout=120).json()
    with httpx.Client(base_url=server.url, timeout=120) as client:
        answer = client.post("/generate", json=bad)
        assert answer.status_code == 500
        assert "NaN" in answer.text
        again = client.post("/generate", json=good)
    assert again.json()["output_ids"] == before["output_ids"]
