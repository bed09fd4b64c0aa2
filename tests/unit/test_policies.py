"""The policy of a server: how its setting is read, what it may run, and what keeps it from it."""

from __future__ import annotations

import pytest

from sglang_respec.config import RespecConfig
from sglang_respec.core import PLAIN, BatchStats, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.policy import Always, Fuzz
from sglang_respec.policies import PolicyChoice, check_within, parse_configs
from sglang_respec.policy_checks import never_drafts, policy_of, refuse_policy

OWN = SpeculationConfig(5, 4, 16)
CHAIN = SpeculationConfig(3, 1, 4)
STATS = BatchStats(4, 100.0, (4, 0, 0))
SERVER = {
    "speculative_algorithm": "EAGLE3",
    "speculative_num_steps": 5,
    "speculative_eagle_topk": 4,
    "speculative_num_draft_tokens": 16,
    "pp_size": 1,
}


def decided(text, steps=1, ready=(OWN, CHAIN)):
    policy = PolicyChoice.parse(text).make(ready, None)
    return [policy.decide(STATS).config for _ in range(steps)]


@pytest.mark.parametrize(
    ("text", "config"),
    [("plain", PLAIN), ("always", OWN), ("always:3,1,4", CHAIN), (" always:(3,1,4) ", CHAIN)],
)
def test_policies_of_one_configuration(text, config):
    choice = PolicyChoice.parse(text)
    ready = choice.ready(OWN, ())
    assert isinstance(choice.make(ready, None), Always)
    assert choice.may_run(ready) == (config,)
    assert decided(text, 3) == [config] * 3


def test_above_switches_with_the_context():
    policy = PolicyChoice.parse("above:100").make((OWN, CHAIN), None)
    contexts = (1.0, 99.9, 100.0, 4000.0)
    plans = [policy.decide(BatchStats(2, each, (2, 0, 0))) for each in contexts]
    assert [plan.config for plan in plans] == [PLAIN, PLAIN, OWN, OWN]


def test_fuzz_repeats_by_its_seed():
    assert isinstance(PolicyChoice.parse("fuzz").make((OWN,), None), Fuzz)
    assert decided("fuzz:1", 50) == decided("fuzz:1", 50) != decided("fuzz:2", 50)
    assert set(decided("fuzz:1", 200)) == {PLAIN, OWN, CHAIN}


def test_what_is_held_ready():
    choice = PolicyChoice.parse("always:3,1,4")
    listed = parse_configs("3,2,6; 3,1,4")
    assert choice.ready(OWN, listed) == (OWN, SpeculationConfig(3, 2, 6), CHAIN)
    fuzz = PolicyChoice.parse("fuzz:1")
    assert fuzz.may_run(fuzz.ready(OWN, ())) == (PLAIN, OWN)
    auto = PolicyChoice.parse("auto")
    assert auto.may_run((OWN, CHAIN)) == (PLAIN, OWN, CHAIN)


@pytest.mark.parametrize("policy", ["plain", "auto", "always", "fuzz:1", "above:9", "default"])
def test_who_never_drafts(policy):
    assert never_drafts(RespecConfig(policy=policy), SERVER) == (policy == "plain")
    assert not never_drafts(RespecConfig(policy=policy), {}), "a server with no drafter at all"


def test_auto_needs_step_times():
    with pytest.raises(RespecError, match="needs step times"):
        PolicyChoice.parse("auto").make((OWN, CHAIN))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"device": "cpu"}, "auto"),
        ({"device": "cuda"}, "always"),
        ({}, "always"),
        ({"device": "cpu", "pp_size": 2}, "always"),
        ({"device": "cpu", "pp_size": 1, "enable_dp_attention": False}, "auto"),
        ({"device": "cpu", "enable_dp_attention": True}, "always"),
    ],
)
def test_the_default_policy(options, name):
    assert policy_of("default", options).name == name
    assert policy_of("plain", options).name == "plain"
    refuse_policy({**SERVER, **options}, RespecConfig())  # a default is never in the way


@pytest.mark.parametrize(
    "text",
    ["", "fast", "plain:1", "auto:x", "always:", "default:1", "fuzz:x", "fuzz:-1", "above",
     "above:x", "sglang-adaptive:2"],
)  # fmt: skip
def test_unknown_policies(text):
    with pytest.raises(RespecError, match="must be one of default, auto"):
        RespecConfig(policy=text)


def test_wrong_shapes():
    with pytest.raises(RespecError, match="steps,topk,draft_tokens"):
        RespecConfig(policy="always:3")
    with pytest.raises(RespecError, match="steps,topk,draft_tokens"):
        RespecConfig(configs="3,1,4; x")
    with pytest.raises(RespecError, match="always held ready"):
        RespecConfig(configs="plain")


@pytest.mark.parametrize("shape", [(6, 1, 7), (3, 5, 8), (5, 4, 17)])
def test_a_shape_larger_than_the_servers_own(shape):
    with pytest.raises(RespecError, match="larger than the server's own"):
        check_within(OWN, [SpeculationConfig(*shape)])
    text = ",".join(map(str, shape))
    for config in (RespecConfig(configs=text), RespecConfig(policy=f"always:{text}")):
        with pytest.raises(RespecError, match="larger than the server's own"):
            refuse_policy(SERVER, config)


def test_what_runs():
    refuse_policy(SERVER, RespecConfig(policy="fuzz:1", configs="3,1,4; 5,4,16"))
    refuse_policy({**SERVER, "pp_size": 2}, RespecConfig())
    refuse_policy({}, RespecConfig(policy="fuzz:1"))  # nothing is speculated
    unknown = {"speculative_algorithm": "EAGLE3"}  # SGLang has still to choose the shape
    refuse_policy(unknown, RespecConfig(configs="9,1,10"))
    adaptive = {**SERVER, "speculative_adaptive": True}
    refuse_policy(adaptive, RespecConfig(policy="sglang-adaptive"))


@pytest.mark.parametrize(
    ("options", "policy", "match"),
    [
        ({"pp_size": 2}, "plain", "--pp-size above 1"),
        ({"enable_dp_attention": True}, "fuzz:1", "--enable-dp-attention"),
        ({"enable_two_batch_overlap": True}, "always:3,1,4", "--enable-two-batch-overlap"),
        ({"enable_pdmux": True}, "above:9", "--enable-pdmux"),
        ({"speculative_adaptive": True}, "plain", "--respec-policy sglang-adaptive"),
        ({}, "sglang-adaptive", "add --speculative-adaptive"),
    ],
)
def test_what_does_not(options, policy, match):
    with pytest.raises(RespecError, match=match):
        refuse_policy({**SERVER, **options}, RespecConfig(policy=policy))


def test_a_profile_that_is_none(tmp_path):
    path = tmp_path / "profile.json"
    with pytest.raises(RespecError, match="cannot be read"):
        refuse_policy(SERVER, RespecConfig(profile=str(path)))
    path.write_text("{")
    with pytest.raises(RespecError, match="not JSON"):
        refuse_policy(SERVER, RespecConfig(profile=str(path)))
