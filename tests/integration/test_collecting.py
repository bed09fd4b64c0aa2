"""A server that collects: what the learner receives is what the target computed and what was sent.

The receiver is the learner's own door, with its own spool and reader behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from demo.train_drafter import auxiliary_states
from rollouts import Rollout, generate
from serving import Servers, speculation
from transformers import AutoModelForCausalLM

from respec_server.bundled import demo_models
from respec_server.learn_receiver import Door, make_app
from sglang_respec.learner.rewards import RewardBook
from sglang_respec.learner.samples import RolloutSample
from sglang_respec.learner.sources import SpoolSource
from sglang_respec.learner.spool import Spool

pytestmark = pytest.mark.server

KEY = "between-server-and-learner"
LISTED = 32
TOKENS = 48
WAIT_S = 60.0
# Small on purpose: prompts are prefilled in chunks, and the running requests do not fit the pool.
CRAMPED = ["--chunked-prefill-size", "48", "--max-total-tokens", "1400"]
POLICIES = {
    "plain": ["--respec-policy", "plain"],
    "chain and plain by turns": ["--respec-policy", "fuzz:5", "--respec-tap-window", "40"],
    "tree": ["--respec-policy", "always:5,4,16"],
}


class Learner:
    """What receives rollouts in `respec learn`."""

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder, budget_bytes=1 << 30)
        self._source = SpoolSource(self.spool)
        book = RewardBook(0.0, "one")
        self._app = make_app(
            self.spool, book, dict, admin_key=KEY, max_chunk_bytes=1 << 30
        )  # fmt: skip

    def door(self, port: int = 0) -> Door:
        return Door(self._app, "127.0.0.1", port)

    def rollouts(self, wanted: int) -> dict[str, RolloutSample]:
        """As many as are wanted, once they are there; no chunk was bad."""
        found: dict[str, RolloutSample] = {}
        deadline = time.monotonic() + WAIT_S
        while len(found) < wanted and time.monotonic() < deadline:
            read = self._source.read()
            assert not found.keys() & {each.request_id for each in read}
            found |= {each.request_id: each for each in read}
            if not read:
                time.sleep(0.1)
        assert self._source.counters()["chunks_bad"] == 0
        assert len(found) == wanted
        return found


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Learner, Door]]:
    receiver = Learner(tmp_path_factory.mktemp("spool"))
    with receiver.door() as door:
        yield receiver, door


@pytest.fixture(scope="module")
def target() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_models()[0], dtype=torch.float32)


@pytest.fixture(scope="module")
def collecting(servers: Servers, learner: tuple[Learner, Door]) -> Callable[[str], str]:
    """The URL of a server that sends its rollouts to the learner, under one of the policies."""

    def url(policy: str) -> str:
        samples = [
            *("--respec-samples-to", learner[1].url),
            *("--respec-samples-key", KEY),
            *("--respec-samples-top-k", str(LISTED)),
        ]
        flags = [*samples, *POLICIES[policy], *CRAMPED]
        return servers.get(*speculation(5, 4, 16), "--respec-configs", "3,1,4", *flags).url

    return url


@pytest.mark.parametrize("policy", POLICIES)
def test_what_arrives_is_what_was_computed(
    collecting: Callable[[str], str],
    learner: tuple[Learner, Door],
    target: Any,
    prompts: list[list[int]],
    policy: str,
) -> None:
    """Through chunked prefills, retractions and cached prefixes."""
    url = collecting(policy)
    crowd = prompts[:24]
    sampling = [
        {
            "temperature": (0.0, 0.7, 1.0, 1.3)[i % 4],
            "max_new_tokens": TOKENS,
            "sampling_seed": 900 + i,
        }
        for i in range(len(crowd))
    ]
    served = generate(url, crowd, sampling, concurrency=12)
    found = learner[0].rollouts(len(crowd))
    worst = {"aux": 0.0, "logprobs": 0.0, "tail": 0.0}
    for prompt, params, rollout in zip(crowd, sampling, served.rollouts, strict=True):
        mine = found[str(rollout.meta["id"])]
        _is_what_was_sent(mine, prompt, params, rollout)
        _measure(worst, mine, target)
    assert sum(each.first_aux > 0 for each in found.values()) > 0, "some prefixes were cached"
    # Two ways through float32: single rows here, whole sequences there. Hidden states are sums of
    # some hundred products over ten layers, so a relative error of 2^-24 grows by sqrt(100 * 10)
    # and a few; a log-probability is a difference of logits of size 10 to 20.
    assert worst["aux"] < 5e-5
    assert worst["logprobs"] < 1e-3
    assert worst["tail"] < 1e-4


def _is_what_was_sent(
    mine: RolloutSample, prompt: list[int], params: dict[str, Any], rollout: Rollout
) -> None:
    assert mine.tokens.tolist() == [*prompt, *rollout.output_ids]
    assert mine.prompt_tokens == len(prompt)
    assert mine.seed == params["sampling_seed"] == rollout.meta["sampling_seed"]
    assert mine.temperature == pytest.approx(params["temperature"])
    assert (mine.drafter_version, mine.policy_version) == (0, 0)
    assert mine.top_ids.shape[1] == LISTED


@torch.inference_mode()
def _measure(worst: dict[str, float], mine: RolloutSample, target: Any) -> None:
    """Against one forward of transformers over the finished rollout."""
    output = target.model(
        input_ids=mine.tokens[None, :-1].long(), output_hidden_states=True, use_cache=False
    )
    aux = auxiliary_states(output.hidden_states)[0, mine.first_aux :]
    worst["aux"] = max(worst["aux"], float((mine.aux - aux).norm() / aux.norm()))
    logits = target.lm_head(output.last_hidden_state[0, mine.prompt_tokens - 1 :])
    logprobs = (logits / (mine.temperature or 1.0)).log_softmax(-1)
    listed = logprobs.gather(1, mine.top_ids.long())
    worst["logprobs"] = max(worst["logprobs"], float((mine.top_logprobs - listed).abs().max()))
    least = logprobs.topk(LISTED, dim=1).values[:, -1:]
    assert (listed >= least - 1e-3).all(), "the likeliest, up to ties"
    tail = 1 - listed.double().exp().sum(1)
    worst["tail"] = max(worst["tail"], float((mine.tail_mass - tail).abs().max()))
