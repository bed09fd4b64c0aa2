"""The `openai` client against a speculative server: what a user's program sees."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from serving import Servers, speculation
from tokenizers import Tokenizer

from sglang_respec.demo_task import make_problem

pytestmark = pytest.mark.server

MESSAGES = make_problem(3, "held_out").messages
TOKENS = 48
GOES_ON = {"ignore_eos": True, "skip_special_tokens": False}
# Verification computes the same logits as plain decoding in other matrix shapes. A float32 dot
# product over at most 512 terms errs by about sqrt(512) * 2^-24 = 1.4e-6 of its size; through 17
# residual branches that is 2.3e-5, and logits of size 20 make it 5e-4.
LOGPROB_TOLERANCE = 5e-4


def client_of(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(servers: Servers) -> Iterator[openai.OpenAI]:
    yield from client_of(servers.get(*speculation(5, 1, 6)).url)


@pytest.fixture(scope="module")
def plain(servers: Servers) -> Iterator[openai.OpenAI]:
    yield from client_of(servers.get(stock=True).url)


def chat(client: openai.OpenAI, **changes: Any) -> ChatCompletion:
    """A greedy answer that does not end by itself, with some parameters changed."""
    request: dict[str, Any] = {
        "model": "default",
        "messages": MESSAGES,
        "max_tokens": TOKENS,
        "temperature": 0.0,
        **changes,
    }
    request["extra_body"] = {**GOES_ON, **request.get("extra_body", {})}
    return client.chat.completions.create(**request)


def text_of(answer: ChatCompletion) -> str:
    content = answer.choices[0].message.content
    assert content
    return content


@pytest.fixture(scope="module")
def greedy(client: openai.OpenAI) -> str:
    return text_of(chat(client))


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()]


def test_chat_counts_its_tokens(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    answer = chat(client, extra_body={"return_spec_tokens_details": True})
    prompt = f"<|im_start|>user\n{MESSAGES[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == TOKENS
    assert answer.usage.prompt_tokens == len(tokenizer.encode(prompt, add_special_tokens=False))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + TOKENS
    details = answer.to_dict()["sglext"]["spec_tokens_details"]  # type: ignore[index]
    assert details["spec_verify_ct"] < TOKENS, "one verify committed several tokens"


def test_an_answer_that_ends_by_itself(client: openai.OpenAI) -> None:
    answer = chat(client, max_tokens=1024, extra_body={"ignore_eos": False})
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens < 1024


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_max_tokens_cuts_inside_an_accepted_run(
    client: openai.OpenAI, greedy: str, tokens: int
) -> None:
    answer = chat(client, max_tokens=tokens)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == tokens
    assert greedy.startswith(answer.choices[0].message.content or "")


def test_completions_continue_a_prompt(client: openai.OpenAI, greedy: str) -> None:
    prompt = f"<|im_start|>user\n{MESSAGES[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    answer = client.completions.create(
        model="default", prompt=prompt, temperature=0, max_tokens=TOKENS, extra_body=GOES_ON
    )
    assert answer.choices[0].text == greedy


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, greedy: str) -> None:
    stream = client.chat.completions.create(
        model="default",
        messages=MESSAGES,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=GOES_ON,
    )
    pieces, reasons, usages = [], [], []
    for chunk in stream:
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            pieces += [choice.delta.content] if choice.delta.content else []
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert len(pieces) > 3
    assert "".join(pieces) == greedy
    assert reasons == ["length"]
    assert usages[-1].completion_tokens == TOKENS


@pytest.mark.parametrize("start", [0.3, 0.7])
def test_a_stop_string_cuts_the_answer(client: openai.OpenAI, greedy: str, start: float) -> None:
    """Wherever in an accepted run it falls, and across token borders."""
    at = int(len(greedy) * start)
    stop = greedy[at : at + 3]
    answer = chat(client, stop=[stop, "never said"])
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.choices[0].message.content or "") == greedy[: greedy.index(stop)]


def test_logprobs_are_those_of_plain_decoding(
    client: openai.OpenAI, plain: openai.OpenAI, greedy: str
) -> None:
    answers = [chat(each, logprobs=True, top_logprobs=3) for each in (client, plain)]
    listed = [answer.choices[0].logprobs for answer in answers]
    assert listed[0] is not None
    assert listed[1] is not None
    ours, theirs = listed[0].content, listed[1].content
    assert ours is not None
    assert theirs is not None
    assert len(ours) == len(theirs) == TOKENS
    assert "".join(each.token for each in ours) == greedy
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.token == other.token
        assert mine.logprob == pytest.approx(other.logprob, abs=LOGPROB_TOLERANCE)
        top = [each.logprob for each in mine.top_logprobs]
        assert len(top) == 3
        assert 0 >= top[0] >= top[1] >= top[2]
        assert mine.logprob == top[0], "greedy takes the most likely token"
        assert mine.top_logprobs[0].token == mine.token
        assert top == pytest.approx(
            [each.logprob for each in other.top_logprobs], abs=LOGPROB_TOLERANCE
        )


def test_logprobs_of_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="default", prompt="What is", temperature=1, seed=4, max_tokens=12, logprobs=2,
        extra_body=GOES_ON,
    )  # fmt: skip
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    chosen, top = logprobs.token_logprobs, logprobs.top_logprobs
    assert chosen is not None
    assert top is not None
    assert len(chosen) == len(top) == 12
    for value, best in zip(chosen, top, strict=True):
        assert value is not None
        assert value <= 0
        assert value <= max(best.values())


def test_four_choices(client: openai.OpenAI) -> None:
    answer = chat(client, n=4, temperature=1.0)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4 * TOKENS


FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "top_p": {"top_p": 0.9},
    "top_k": {"extra_body": {"top_k": 8}},
    "min_p": {"extra_body": {"min_p": 0.02}},
    "all": {"top_p": 0.95, "extra_body": {"top_k": 20, "min_p": 0.01}},
}


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS.keys())
def test_a_seed_decides_the_answer(client: openai.OpenAI, filters: dict[str, Any]) -> None:
    texts = [
        text_of(chat(client, temperature=1.0, seed=seed, **filters)) for seed in (5, 5, 6, 7, 8)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_top_k_of_one_is_greedy(client: openai.OpenAI, greedy: str) -> None:
    sampled = chat(client, temperature=1.0, seed=1, extra_body={"top_k": 1})
    assert text_of(sampled) == greedy


BAD: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": -1.0},
    "top_p": {"top_p": 2.0},
    "min_p": {"extra_body": {"min_p": 3.0}},
    "max_tokens": {"max_tokens": -3},
    "too long": {"max_tokens": 100_000},
    "no messages": {"messages": []},
    "no choices": {"n": 0},
    "seed": {"seed": 2**63},
    "stop ids": {"extra_body": {"stop_token_ids": "x"}},
    "role": {"messages": [{"role": "user"}]},
}


def test_bad_input_is_refused_and_the_server_goes_on(client: openai.OpenAI, greedy: str) -> None:
    for name, changes in BAD.items():
        with pytest.raises(openai.APIStatusError) as refused:
            chat(client, **changes)
        assert 400 <= refused.value.status_code < 500, name
    assert text_of(chat(client)) == greedy


def test_a_client_that_goes_away_leaves_the_server_serving(
    client: openai.OpenAI, greedy: str
) -> None:
    stream = client.chat.completions.create(
        model="default",
        messages=MESSAGES,
        max_tokens=1500,
        stream=True,
        extra_body=GOES_ON,  # type: ignore[arg-type]
    )
    next(iter(stream))
    stream.close()
    assert text_of(chat(client)) == greedy
