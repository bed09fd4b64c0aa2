"""Whether a new drafter is worth less than the one before it, told from what the target accepts."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["watching", "kept", "worse", "no baseline", "off"]

# Under overlap the step that ran during the swap is reported after it, and belongs to the old one.
SETTLING_STEPS = 2
# A baseline from fewer verifies than this part of the window says too little.
LEAST_BASELINE = 0.25


@dataclass(frozen=True)
class GuardPolicy:
    """verifies: of single requests, after the swap. ratio: of accepted drafts per verify, new to
    old, under which the new drafter goes; 0 verifies switches the guard off."""

    verifies: int
    ratio: float


class _Window:
    """Accepted drafts over the last so many verifies, in all and by shape of speculation."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._steps: deque[tuple[str, int, int]] = deque()
        self.drafts: Counter[str] = Counter()  # by shape
        self.counts: Counter[str] = Counter()  # verifies, by shape

    def add(self, shape: str, drafts: int, verifies: int) -> None:
        self._steps.append((shape, drafts, verifies))
        self.drafts[shape] += drafts
        self.counts[shape] += verifies
        while self.verifies - self._steps[0][2] >= self._size:
            old_shape, old_drafts, old_verifies = self._steps.popleft()
            self.drafts[old_shape] -= old_drafts
            self.counts[old_shape] -= old_verifies

    @property
    def verifies(self) -> int:
        return self.counts.total()

    @property
    def mean(self) -> float:
        return self.drafts.total() / self.verifies if self.verifies else 0.0

    def against(self, baseline: _Window) -> tuple[int, float, int]:
        """Drafts accepted here, drafts that the baseline would have had in the same verifies, and
        their number. Shapes that the baseline has not seen are left out: a planner that changes
        from five steps to three does not make a drafter worse."""
        shared = [each for each, count in self.counts.items() if count and baseline.counts[each]]
        expected = sum(
            self.counts[each] * baseline.drafts[each] / baseline.counts[each] for each in shared
        )
        drafts = sum(self.drafts[each] for each in shared)
        return drafts, expected, sum(self.counts[each] for each in shared)


class Guard:
    """Compares each new drafter with the last one that was judged good, or never questioned.

    The mean of accepted drafts per verify over a window of the old drafter, against the same
    number of verifies of the new one, shape of speculation by shape. A drafter that was pushed
    but not yet judged is no standard: when another push follows at once, the older baseline stays.
    """

    def __init__(self, policy: GuardPolicy, serving: int) -> None:
        self._default = policy
        self._window = _Window(max(1, policy.verifies))
        self._baseline: _Window | None = None
        self._baseline_version = serving
        self._policy: GuardPolicy | None = None  # of the drafter under watch
        self._settling = 0
        self.verdict: Verdict = "off"

    @property
    def fallback(self) -> int:
        """The version that the baseline was measured on: where a rollback leads."""
        return self._baseline_version

    def swapped(self, *, old: int, policy: GuardPolicy | None) -> None:
        """A push was committed. old: the version it replaced; policy: None for the default."""
        if self.verdict != "watching":
            self._baseline, self._baseline_version = self._window, old
        chosen = policy or self._default
        self._window = _Window(max(1, self._default.verifies))
        self._settling = SETTLING_STEPS
        self._policy = None
        if chosen.verifies == 0:
            self.verdict = "off"
        elif self._baseline is None or self._baseline.verifies < LEAST_BASELINE * chosen.verifies:
            self.verdict = "no baseline"
        else:
            self.verdict, self._policy = "watching", chosen

    def restored(self, number: int) -> None:
        """Earlier weights serve again under this version; nothing is watched."""
        if self._baseline is not None:
            self._window, self._baseline = self._baseline, None
        self._baseline_version = number
        self._policy, self.verdict = None, "off"
        self._settling = SETTLING_STEPS

    def record(self, accepted_drafts: int, verifies: int, shape: str = "") -> Verdict | None:
        """Take in one step; returns the verdict in the step that brings it."""
        if self._settling:
            self._settling -= 1
            return None
        self._window.add(shape, accepted_drafts, verifies)
        policy, baseline = self._policy, self._baseline
        if policy is None or baseline is None:
            return None
        drafts, expected, compared = self._window.against(baseline)
        if compared < policy.verifies:
            return None
        self._policy = None
        self.verdict = "worse" if drafts < policy.ratio * expected else "kept"
        return self.verdict

    def to_dict(self) -> dict[str, Any]:
        baseline = self._baseline
        return {
            "verdict": self.verdict,
            "verifies": self._window.verifies,
            "accepted_length": 1 + self._window.mean if self._window.verifies else None,
            "baseline_version": self._baseline_version,
            "baseline_accepted_length": 1 + baseline.mean if baseline and baseline.verifies
            else None,
            "needs_verifies": self._policy.verifies if self._policy else None,
            "ratio": self._policy.ratio if self._policy else None,
        }  # fmt: skip
