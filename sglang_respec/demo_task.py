"""The demo pair's task: running arithmetic, worked line by line, checked by its last line.

A problem starts from a number and applies lettered steps; the worked answer has one line per
step and ends in ``Answer: N``. Three properties make it a good stand-in for a reasoning task:

* **verifiable**: :func:`reward` needs nothing but the text;
* **long-tailed**: the number of steps is log-normal, so answers run from about 20 to 400 tokens
  of the demo tokenizer, as rollouts of real policies do;
* **free in form**: each line may be phrased in several legal ways, so sampling at temperature 1
  is truly random while the arithmetic stays checkable.

Train and held-out problems never meet: the split is a hash of the problem itself, and a seed only
chooses among the problems of its split.
"""

import math
import random
import re
import zlib
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "held_out"]
Message = dict[str, str]

LABELS = "abcdefghijklmnopqrstuvwxyz"
MAX_STEPS = len(LABELS)
MAX_TOTAL = 99  # every running total stays within 0..MAX_TOTAL
MAX_OPERAND = 9
MEDIAN_STEPS = 6.5
STEPS_SIGMA = 0.75  # of the log of the number of steps; the tail reaches MAX_STEPS
HELD_OUT_SHARE = 10  # one problem in ten is held out

_PHRASINGS = (
    "Start with {start}. Apply these steps and show your work:\n{steps}",
    "Begin at {start} and work through these steps:\n{steps}",
    "What is {start} after these steps?\n{steps}",
)
# The first form of each list is the most likely one by a margin, so that greedy decoding has a
# clear winner while sampling visits all of them (about 3 nats of freedom per line).
_OPENINGS = ((0.60, ""), (0.25, "Let me work through it.\n"), (0.15, "We start with {start}.\n"))
_LEADS = ((0.55, ""), (0.25, "now "), (0.20, "then "))
_LINE_FORMS = (
    (0.46, "{before} {sign} {operand} = {after}"),
    (0.22, "{before} {word} {operand} is {after}"),
    (0.18, "from {before} to {after}"),
    (0.14, "{before} becomes {after}"),
)
# The last tail undoes the step as a check.
_TAILS = ((0.66, ""), (0.14, "."), (0.20, " (check: {after} {undo} {operand} = {before})"))

_PROMPT_STEP = re.compile(r"^[a-z] ([+-]\d+)$", re.MULTILINE)
_PROMPT_START = re.compile(r"(?:Start with|Begin at|What is) (\d+)")
_ANSWER_LINE = re.compile(r"Answer: (-?\d+)")


@dataclass(frozen=True)
class Problem:
    """One task instance. ``steps`` are signed operands, applied in order to ``start``."""

    start: int
    steps: tuple[int, ...]
    phrasing: int = 0

    @property
    def answer(self) -> int:
        return self.start + sum(self.steps)

    @property
    def prompt(self) -> str:
        steps = "\n".join(
            f"{label} {step:+d}" for label, step in zip(LABELS, self.steps, strict=False)
        )
        return _PHRASINGS[self.phrasing].format(start=self.start, steps=steps)

    @property
    def messages(self) -> list[Message]:
        """The prompt as an OpenAI-style conversation."""
        return [{"role": "user", "content": self.prompt}]

    @property
    def is_held_out(self) -> bool:
        """Decided by the arithmetic alone, so a rephrased problem stays on its side."""
        return zlib.crc32(repr((self.start, self.steps)).encode()) % HELD_OUT_SHARE == 0


def make_problem(
    seed: int,
    split: Split = "train",
    max_steps: int = MAX_STEPS,
    median_steps: float = MEDIAN_STEPS,
) -> Problem:
    """The problem number ``seed`` of ``split``; the same on every machine and Python version."""
    if split not in ("train", "held_out"):
        raise ValueError(f"split is {split!r}; use 'train' or 'held_out'")
    if not 1 <= max_steps <= MAX_STEPS:
        raise ValueError(f"max_steps is {max_steps}; choose 1..{MAX_STEPS}, one letter per step")
    rng = random.Random(f"{split}:{seed}")  # noqa: S311 (no secret hangs on it)
    while True:
        problem = _draw_problem(rng, max_steps, median_steps)
        if problem.is_held_out == (split == "held_out"):
            return problem


def parse_problem(prompt: str) -> Problem:
    """Read a problem back from its prompt text."""
    start = _PROMPT_START.search(prompt)
    steps = _PROMPT_STEP.findall(prompt)
    if start is None or not steps:
        raise ValueError(
            f"not a demo prompt: {prompt!r}; make one with make_problem(seed).prompt, "
            "for example 'What is 12 after these steps?\\na +3\\nb -5'"
        )
    return Problem(start=int(start.group(1)), steps=tuple(map(int, steps)))


def worked_answer(problem: Problem, rng: random.Random | None = None) -> str:
    """A right answer: the plainest form without ``rng``, else a random legal form."""
    total = problem.start
    text = _choose(_OPENINGS, rng).format(start=total)
    for label, step in zip(LABELS, problem.steps, strict=False):
        text += _worked_line(label, total, step, rng) + "\n"
        total += step
    return f"{text}Answer: {total}"


def reward(problem: Problem | str, completion: str) -> float:
    """1.0 if the last line of ``completion`` states the right answer, else 0.0.

    ``problem`` may be the prompt's text. A completion cut short before its answer line earns 0.
    """
    if isinstance(problem, str):
        problem = parse_problem(problem)
    lines = completion.removesuffix("<|im_end|>").strip().splitlines()
    stated = _ANSWER_LINE.fullmatch(lines[-1].strip()) if lines else None
    return float(stated is not None and int(stated.group(1)) == problem.answer)


def _draw_problem(rng: random.Random, max_steps: int, median_steps: float) -> Problem:
    count = min(max_steps, math.ceil(rng.lognormvariate(math.log(median_steps), STEPS_SIGMA)))
    start = total = rng.randint(1, MAX_TOTAL)
    steps = []
    for _ in range(count):
        step = _draw_step(rng, total)
        steps.append(step)
        total += step
    return Problem(start, tuple(steps), phrasing=rng.randrange(len(_PHRASINGS)))


def _draw_step(rng: random.Random, total: int) -> int:
    """A step that keeps the total within 0..MAX_TOTAL; the sign is a coin where both fit."""
    up, down = min(MAX_OPERAND, MAX_TOTAL - total), min(MAX_OPERAND, total)
    adds = down < 1 or (up >= 1 and rng.random() < 0.5)
    return rng.randint(1, up) if adds else -rng.randint(1, down)


def _worked_line(label: str, before: int, step: int, rng: random.Random | None) -> str:
    parts = (_choose(forms, rng) for forms in (_LEADS, _LINE_FORMS, _TAILS))
    adds = step > 0
    return f"{label} {step:+d}: " + "".join(parts).format(
        before=before,
        after=before + step,
        operand=abs(step),
        sign="+" if adds else "-",
        undo="-" if adds else "+",
        word="plus" if adds else "minus",
    )


def _choose(forms: tuple[tuple[float, str], ...], rng: random.Random | None) -> str:
    if rng is None:
        return forms[0][1]
    return rng.choices([form for _, form in forms], [weight for weight, _ in forms])[0]
