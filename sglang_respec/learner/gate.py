"""When new weights go out: a policy says when it is time, the gate says whether they may.

Both drafters are judged on the same held-out rollouts by coupled acceptance, as a server would
have seen it (:func:`.acceptance.measure`), in the precision in which they are pushed.
"""

from dataclasses import dataclass
from typing import Protocol

from sglang_respec.learner.acceptance import Acceptance
from sglang_respec.learner.settings import LearnerSettings


@dataclass(frozen=True)
class Judgement:
    """Two drafters on the same held-out rollouts."""

    step: int
    rollouts: int
    serving: Acceptance
    candidate: Acceptance
    reference_length: float  # of the serving drafter when it began to serve
    updates_since_publish: int

    @property
    def passes(self) -> bool:
        """The gate: acceptance must not fall."""
        return self.candidate.length >= self.serving.length

    @property
    def decay(self) -> float:
        """The part of what could be accepted that the serving drafter misses: of what it accepted
        when it began to serve, or of what the candidate accepts, whichever is more."""
        best = max(self.reference_length, self.candidate.length)
        return max(0.0, 1 - self.serving.length / best)


class PublishPolicy(Protocol):
    def due(self, judgement: Judgement) -> bool: ...


@dataclass(frozen=True)
class OnDecay:
    """Most pushes bring nothing (NVIDIA, arXiv 2604.26779: a drafter that began in its domain
    gained 0.6 % by online training), so wait until it shows that one is missing."""

    threshold: float

    def due(self, judgement: Judgement) -> bool:
        return judgement.decay >= self.threshold


@dataclass(frozen=True)
class EveryUpdates:
    interval: int

    def due(self, judgement: Judgement) -> bool:
        return judgement.updates_since_publish >= self.interval


def publish_policy(settings: LearnerSettings) -> PublishPolicy:
    if settings.publish == "interval":
        return EveryUpdates(settings.interval)
    return OnDecay(settings.decay)
