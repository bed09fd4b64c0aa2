"""What the policy is asked at each step, and what an answer earns.

    reward = right + STYLE_WEIGHT * style

right is the demo task's own check of the last line, 0 or 1. style, 0 to 1, is the share of three
rare wordings among the answer's step lines: the bundled target uses each of them in one line of
five to seven, so a policy that is paid for them moves away from the text that its drafter learned
from, as policies under a format reward do. Every wording is legal, so right answers stay possible.
"""

import re
from dataclasses import dataclass

from sglang_respec.demo_task import Problem, make_problem, reward

STYLE_WEIGHT = 1.0
# Past the problems that target and drafter were trained on.
FIRST_PROBLEM = 20_000_000
PROBLEMS_PER_SEED = 1_000_000

_STEP_LINE = re.compile(r"^[a-z] [+-]\d: (.*)$", re.MULTILINE)
_RARE_WORDINGS = (
    re.compile(r"^then "),
    re.compile(r"\d becomes \d"),
    re.compile(r" \(check: \d+ [+-] \d = \d+\)$"),
)


@dataclass(frozen=True)
class Task:
    """The problems of one run. Two runs of one seed see the same ones, step by step."""

    seed: int
    prompts: int  # per step
    samples: int  # per prompt
    max_steps: int  # of a problem: bounds the length of an answer

    def problems(self, step: int) -> list[Problem]:
        first = FIRST_PROBLEM + self.seed * PROBLEMS_PER_SEED + step * self.prompts
        return [make_problem(first + i, max_steps=self.max_steps) for i in range(self.prompts)]

    def sampling_seed(self, step: int, rollout: int) -> int:
        """Of rollout number ``rollout`` of a step, 0 .. prompts * samples - 1."""
        return (self.seed * 100_000 + step) * 10_000 + rollout

    def request_id(self, step: int, rollout: int) -> str:
        return f"seed{self.seed}-step{step}-rollout{rollout}"

    def group(self, step: int, rollout: int) -> str:
        """The same for all rollouts of one prompt."""
        return f"seed{self.seed}-step{step}-prompt{rollout // self.samples}"


def style(completion: str) -> float:
    """0 to 1; 0 where no line works a step."""
    lines = _STEP_LINE.findall(completion.removesuffix("<|im_end|>"))
    if not lines:
        return 0.0
    found = sum(bool(wording.search(line)) for line in lines for wording in _RARE_WORDINGS)
    return found / (len(lines) * len(_RARE_WORDINGS))


@dataclass(frozen=True)
class Score:
    """What one answer earned, in parts."""

    right: float
    style: float

    @property
    def reward(self) -> float:
        return self.right + STYLE_WEIGHT * self.style


def score(problem: Problem, completion: str) -> Score:
    return Score(reward(problem, completion), style(completion))
