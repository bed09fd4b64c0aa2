"""The demo of reinforcement learning without a server: task, loss, trainer, records, report."""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import rl_demo
from rl.figure import draw
from rl.grpo import (
    Answer,
    GrpoSettings,
    Policy,
    advantages,
    clipped_loss,
    padded_batches,
)
from rl.records import (
    ARMS,
    ArmRun,
    Settings,
    StepRecord,
    load_run,
    run_path,
    save_run,
    tokens_digest,
)
from rl.report import ablation_table, accepted, differences, equality_line, summary_table
from rl.task import Task, score, style

from sglang_respec.demo_task import Problem
from sglang_respec.errors import RespecError

PROBLEM = Problem(12, (3, -5))
PLAIN_ANSWER = "a +3: 12 + 3 = 15\nb -5: 15 - 5 = 10\nAnswer: 10"
RARE_ANSWER = (
    "a +3: then 12 becomes 15 (check: 15 - 3 = 12)\n"
    "b -5: then 15 becomes 10 (check: 10 + 5 = 15)\nAnswer: 10"
)
SETTINGS = Settings(
    steps=4, prompts=2, samples=2, max_steps=8, max_new_tokens=64, concurrency=4,
    learning_rate=3e-4, epochs=2, clip=0.2, learner={"steps": "5"},
)  # fmt: skip
FACTS = {
    "machine": {"cpu": "a processor", "cores": 2},
    "versions": {"torch": "x", "sglang": "y", "commit": "z"},
}


# The task


def test_style_counts_rare_wordings_line_by_line() -> None:
    assert style(PLAIN_ANSWER) == 0
    assert style(RARE_ANSWER) == 1
    one_of_six = "a +3: then 12 + 3 = 15\nb -5: from 15 to 10\nAnswer: 10"
    assert style(one_of_six) == pytest.approx(1 / 6)
    assert style("") == 0


def test_a_right_answer_in_rare_words_earns_most() -> None:
    assert score(PROBLEM, PLAIN_ANSWER).reward == 1
    assert score(PROBLEM, RARE_ANSWER).reward == 2
    assert score(PROBLEM, RARE_ANSWER.replace("Answer: 10", "Answer: 11")).reward == 1


def test_two_runs_of_a_seed_ask_the_same_and_two_seeds_do_not() -> None:
    task, again, other = (Task(seed, 4, 2, 8) for seed in (3, 3, 4))
    assert task.problems(5) == again.problems(5)
    assert task.problems(5) != task.problems(6)
    assert task.problems(5) != other.problems(5)
    assert all(len(each.steps) <= 8 and not each.is_held_out for each in task.problems(0))


def test_no_two_rollouts_share_a_seed_or_a_name() -> None:
    seen = [
        (task.sampling_seed(step, number), task.request_id(step, number))
        for task in (Task(0, 8, 8, 8), Task(1, 8, 8, 8))
        for step in range(40)
        for number in range(64)
    ]
    assert len({seed for seed, _ in seen}) == len({name for _, name in seen}) == len(seen)


# The loss


def test_advantages_are_standardised_within_each_prompt() -> None:
    found = advantages([1.0, 3.0, 5.0, 5.0, 0.0, 0.0], 2)
    assert found == pytest.approx([-1, 1, 0, 0, 0, 0], abs=1e-3)


def test_the_loss_and_its_gradient_are_those_of_the_formula() -> None:
    """Against the formula written out in float64, token by token, with every case of the clip."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(64, dtype=torch.float64, generator=generator) - 2
    moved = torch.randn(64, dtype=torch.float64, generator=generator) * 0.4
    gains = torch.randn(64, dtype=torch.float64, generator=generator)
    clip = 0.2
    expected, slopes = [], []
    for before, move, gain in zip(old.tolist(), moved.tolist(), gains.tolist(), strict=True):
        ratio = math.exp((before + move) - before)
        clipped = min(max(ratio, 1 - clip), 1 + clip)
        expected.append(-min(ratio * gain, clipped * gain))
        # The gradient is gone where the clipped branch is the smaller one and does not move.
        slopes.append(0.0 if clipped != ratio and clipped * gain < ratio * gain else -ratio * gain)
    logprobs = (old + moved).requires_grad_()
    loss = clipped_loss(logprobs, old, gains, clip)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(logprobs.grad, torch.tensor(slopes, dtype=torch.float64))
    assert 0 < slopes.count(0.0) < len(slopes)


# The trainer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the demo target's kind, of a few thousand parameters."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


ANSWERS = [
    Answer((1, 2, 3), (4, 5, 6, 7), 1.0),
    Answer((1, 2, 3), (9,), -1.0),
    Answer((8, 3), (20, 21, 22), 0.5),
]


def test_padding_changes_no_log_probability(tiny: Path) -> None:
    """Batched and padded in float32 against one answer at a time in float64: a thousand float32
    operations of rounding 6e-8 each stay below 1e-4."""
    policy = Policy(tiny, GrpoSettings())
    with torch.no_grad():
        found = [policy.drawn_logprobs(batch) for batch in padded_batches(ANSWERS, 16)]
    exact = Qwen2ForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    expected = []
    for answer in sorted(ANSWERS, key=len):
        tokens = torch.tensor([[*answer.prompt, *answer.tokens]])
        with torch.no_grad():
            logprobs = exact(input_ids=tokens).logits[0].log_softmax(-1)
        first = len(answer.prompt) - 1
        expected += [logprobs[first + i, token].item() for i, token in enumerate(answer.tokens)]
    assert len(found) > 1
    torch.testing.assert_close(
        torch.cat(found).double(), torch.tensor(expected).double(), atol=1e-4, rtol=0
    )


def test_an_update_makes_better_answers_likelier(tiny: Path) -> None:
    policy = Policy(tiny, GrpoSettings(learning_rate=1e-3))
    before = answer_logprobs(policy)
    norm = policy.update(ANSWERS)
    gained = [after - was for after, was in zip(answer_logprobs(policy), before, strict=True)]
    assert norm > 0
    assert gained[0] > 0 > gained[1]
    assert gained[2] > 0


def test_equal_rollouts_give_equal_weights_and_the_embedding_stays(tiny: Path) -> None:
    first, second = (Policy(tiny, GrpoSettings()) for _ in range(2))
    start = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    for policy in (first, second):
        policy.update(ANSWERS)
        policy.update(ANSWERS[:2])
    state, again = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)
    unmoved = {name for name in state if torch.equal(state[name], start[name])}
    assert unmoved >= {"model.embed_tokens.weight", "lm_head.weight"}
    assert "model.layers.0.self_attn.q_proj.weight" not in unmoved


def test_what_is_saved_is_what_was_trained(tiny: Path, tmp_path: Path) -> None:
    policy = Policy(tiny, GrpoSettings())
    policy.update(ANSWERS)
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    policy.save(tmp_path / "model.safetensors")
    read = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(read[n], t) for n, t in policy.model.state_dict().items())


def answer_logprobs(policy: Policy) -> list[float]:
    with torch.no_grad():
        return [
            policy.drawn_logprobs(batch).sum().item()
            for answer in ANSWERS
            for batch in padded_batches([answer], 16)
        ]


# Records


def test_a_digest_tells_every_token_its_place_and_where_rollouts_end() -> None:
    digest = tokens_digest([[1, 2], [3]])
    assert digest == tokens_digest([(1, 2), (3,)])
    others = ([[1, 2], [4]], [[1], [2, 3]], [[3], [1, 2]], [[12], [3]], [[1, 2, 3]])
    assert digest not in {tokens_digest(each) for each in others}


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = run_path(tmp_path, SETTINGS, "frozen", 0)
    assert load_run(path) is None
    run = make_run("frozen", 0, [5.0, 4.5])
    save_run(path, run)
    assert load_run(path) == run
    assert run_path(tmp_path, dataclasses.replace(SETTINGS, clip=0.3), "frozen", 0) != path


def test_an_interrupted_demo_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def perform(arm: str, seed: int, settings: Settings, path: Path) -> ArmRun:
        asked.append((arm, seed))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return make_run(arm, seed, [5.0] * 4)

    monkeypatch.setattr(rl_demo, "RUNS", tmp_path)
    monkeypatch.setattr(rl_demo, "perform", perform)
    options = argparse.Namespace(arms=["plain", "frozen"], seeds=2, again=False, ablation=False)
    with pytest.raises(KeyboardInterrupt):
        rl_demo.collect(options, SETTINGS)
    runs = rl_demo.collect(options, SETTINGS)
    assert asked == [("plain", 0), ("frozen", 0), ("plain", 1), ("plain", 1), ("frozen", 1)]
    assert [(run.arm, run.seed) for run in runs] == [*asked[:3], asked[4]]


def test_settings_of_the_learner_can_be_changed_by_name() -> None:
    found = rl_demo.learner_flags(["learning-rate=5e-4", "interval=30"])
    assert found == {**rl_demo.LEARNER, "learning-rate": "5e-4", "interval": "30"}
    for wrong in ("learning_rat=1", "judge-every", "weight=reward"):
        with pytest.raises(RespecError, match="NAME=VALUE"):
            rl_demo.learner_flags([wrong])


# The report


def make_step(
    step: int, length: float | None, digest: str = "same", rate: float = 100
) -> StepRecord:
    verifies = 1000 if length else 0
    return StepRecord(
        step=step, reward=1.0, right=0.8, style=0.2, tokens=5000,
        committed=round((length or 0) * verifies), verifies=verifies, digest=digest, grad_norm=1.0,
        drafter_version=step if length else None, learner_updates=None, rollout_s=5000 / rate,
        train_s=1.0, sync_s=0.1, learner_cpu_s=2.0,
    )  # fmt: skip


def make_run(arm: str, seed: int, lengths: list[float], rate: float = 100, **changes) -> ArmRun:
    speculates = ARMS[arm].speculates
    steps = [
        make_step(i, length if speculates else None, changes.get(str(i), f"{seed}-{i}"), rate)
        for i, length in enumerate(lengths)
    ]
    return ArmRun(arm, seed, SETTINGS, FACTS, 12.0, steps)


def test_unequal_rollouts_are_found_and_named() -> None:
    runs = [make_run(arm, seed, [5.0] * 4) for seed in (0, 1) for arm in ("plain", "frozen")]
    assert differences(runs) == []
    assert "identical" in equality_line(runs)
    runs[3] = make_run("frozen", 1, [5.0] * 4, **{"2": "other"})
    (found,) = differences(runs)
    assert (found.arm, found.seed, found.step) == ("frozen", 1, 2)
    assert "frozen with seed 1 from step 2" in equality_line(runs)


def test_accepted_length_is_over_all_verifies_and_plain_has_none() -> None:
    steps = make_run("frozen", 0, [5.0, 4.0]).steps
    assert accepted(steps) == pytest.approx(4.5)
    assert accepted(make_run("plain", 0, [0.0]).steps) is None


def test_the_summary_tells_what_was_lost_and_how_fast_it_was() -> None:
    runs = [
        make_run("plain", 0, [0.0] * 6, rate=100),
        make_run("frozen", 0, [5, 5, 5, 4, 4, 4], rate=150),
        make_run("learner", 0, [5, 5, 5, 5, 5, 5], rate=200),
    ]
    table = {line.split(" | ")[0].strip("| "): line for line in summary_table(runs).splitlines()}
    assert "| 5.00 | 4.00 | -20.0% | 150 | 1.50 |" in table["frozen"]
    assert "| 5.00 | 5.00 | +0.0% | 200 | 2.00 |" in table["learner"]
    assert "| 12 | 5 |" in table["learner"]


def test_the_ablation_compares_each_weight_with_none_of_the_same_seed() -> None:
    runs = [
        make_run("learner", 0, [5.0] * 4),
        make_run("learner", 1, [4.0] * 4),
        make_run("learner-reward", 0, [5.5] * 4),
        make_run("learner-reward", 1, [4.4] * 4),
    ]
    _, _, none, reward = ablation_table(runs).splitlines()
    assert none.startswith("| none | 2 | 4.50 (4.00 to 5.00)")
    assert reward.endswith("+10.0% (+10.0% to +10.0%) |")


def test_the_result_is_json_and_the_section_says_where_it_was_measured() -> None:
    runs = [make_run(arm, 0, [5.0] * 4) for arm in ("plain", "frozen")]
    result = rl_demo.result_of(runs, SETTINGS)
    assert result["identical_rollouts"]
    assert json.loads(json.dumps(result, allow_nan=False))["runs"][1]["steps"][3]["step"] == 3
    text = rl_demo.section(runs, ablation=False)
    assert "a processor, 2 cores" in text
    assert summary_table(runs) in text
    assert equality_line(runs) in text


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    runs = [make_run(arm, s, [5.0, 4.0]) for s in (0, 1) for arm in ("plain", "frozen", "learner")]
    draw(tmp_path / "figure.png", runs, "a title")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
