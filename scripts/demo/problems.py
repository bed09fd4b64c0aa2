"""The problems that the pair learns from: shorter ones than it is asked."""

from sglang_respec.demo_task import MAX_STEPS, Problem, make_problem

# What is asked has a median of `demo_task.MEDIAN_STEPS`; the gap leaves room to improve.
TRAINING_MEDIAN_STEPS = 4.5


def training_problem(number: int, max_steps: int = MAX_STEPS) -> Problem:
    """Never one of the held-out problems."""
    return make_problem(number, max_steps=max_steps, median_steps=TRAINING_MEDIAN_STEPS)
