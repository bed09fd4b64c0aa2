"""The demo task: right answers earn 1, wrong ones 0, lengths have a long tail."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_respec.demo_task import (
    MAX_STEPS,
    MAX_TOTAL,
    Problem,
    make_problem,
    parse_problem,
    reward,
    worked_answer,
)

seeds = st.integers(min_value=0, max_value=10**9)
splits = st.sampled_from(["train", "held_out"])
problems = st.builds(make_problem, seeds, splits)


@given(problems, seeds)
def test_every_legal_form_of_the_right_answer_earns_one(problem: Problem, form: int) -> None:
    for text in (worked_answer(problem), worked_answer(problem, random.Random(form))):
        assert reward(problem, text) == 1.0
        assert reward(problem.prompt, text + "<|im_end|>") == 1.0


@given(problems, st.integers(min_value=-500, max_value=500))
def test_a_wrong_number_earns_nothing(problem: Problem, offset: int) -> None:
    stated = f"a) whatever\nAnswer: {problem.answer + offset}"
    assert reward(problem, stated) == float(offset == 0)


@given(problems, st.data())
def test_a_cut_answer_earns_nothing(problem: Problem, data: st.DataObject) -> None:
    text = worked_answer(problem)
    kept = data.draw(st.integers(min_value=0, max_value=text.rindex("\n")))
    assert reward(problem, text[:kept]) == 0.0


@pytest.mark.parametrize("tail", ["\nmore", " 5", "0 apples", "\nAnswer: none"])
def test_the_answer_must_be_the_whole_last_line(tail: str) -> None:
    problem = make_problem(1)
    assert reward(problem, worked_answer(problem) + tail) == 0.0


def test_an_empty_completion_earns_nothing() -> None:
    assert reward(make_problem(0), "") == 0.0


@given(problems)
def test_the_prompt_states_the_problem(problem: Problem) -> None:
    parsed = parse_problem(problem.prompt)
    assert (parsed.start, parsed.steps) == (problem.start, problem.steps)
    assert problem.messages == [{"role": "user", "content": problem.prompt}]


@given(problems)
def test_running_totals_stay_in_range(problem: Problem) -> None:
    total = problem.start
    assert 1 <= len(problem.steps) <= MAX_STEPS
    for step in problem.steps:
        total += step
        assert step != 0
        assert 0 <= total <= MAX_TOTAL


@given(seeds)
def test_the_splits_never_meet(seed: int) -> None:
    assert not make_problem(seed, "train").is_held_out
    assert make_problem(seed, "held_out").is_held_out
    assert make_problem(seed) == make_problem(seed)


@given(seeds, st.integers(min_value=1, max_value=MAX_STEPS))
def test_max_steps_bounds_the_problem(seed: int, limit: int) -> None:
    assert len(make_problem(seed, max_steps=limit).steps) <= limit


def test_lengths_have_a_long_tail() -> None:
    lengths = [len(make_problem(seed).steps) for seed in range(2000)]
    marks = statistics.quantiles(lengths, n=100)
    median, high = marks[49], marks[98]
    assert 6 <= median <= 8
    assert high >= 3.5 * median
    assert statistics.mean(lengths) > 1.1 * median


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda: make_problem(0, "test"), "held_out"),
        (lambda: make_problem(0, max_steps=27), "letter"),
        (lambda: parse_problem("hello"), "make_problem"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(call: object, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        call()  # type: ignore[operator]
