"""Whether a new drafter is worth less than the one before it, told from what the target accepts."""

from __future__ import annotations

from collections import deque
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
    """Accepted drafts over the last so many verifies."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._steps: deque[tuple[int, int]] = deque()
        self.drafts = 0
        self.verifies = 0

    def add(self, drafts: int, verifies: int) -> None:
        self._steps.append((drafts, verifies))
        self.drafts += drafts
        self.verifies += verifies
        while self.verifies - self._steps[0][1] >= self._size:
            old_drafts, old_verifies = self._steps.popleft()
            self.drafts -= old_drafts
            self.verifies -= old_verifies

    @property
    def mean(self) -> float:
        return self.drafts / self.verifies if self.verifies else 0.0


class Guard:
    """Compares each new drafter with the last one that was judged good, or never questioned.

    The mean of accepted drafts per verify over a window of the old drafter, against the same
    number of verifies of the new one. A drafter that was pushed but not yet judged is no standard:
    when another push follows at once, the older baseline stays.
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

    def record(self, accepted_drafts: int, verifies: int) -> Verdict | None:
        """Take in one step; returns the verdict in the step that brings it."""
        if self._settling:
            self._settling -= 1
            return None
        self._window.add(accepted_drafts, verifies)
        policy, baseline = self._policy, self._baseline
        if policy is None or baseline is None or self._window.verifies < policy.verifies:
            return None
        self._policy = None
        self.verdict = "worse" if self._window.mean < policy.ratio * baseline.mean else "kept"
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
