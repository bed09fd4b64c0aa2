"""Which drafters served, which one serves, and which can be brought back."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, TypeVar

from sglang_respec.errors import RespecError

Origin = Literal["start", "push", "rollback", "guard"]

W = TypeVar("W")
RECORDS = 64  # versions remembered by name, long after their weights are gone


class NotKept(RespecError):  # noqa: N818 (it is what was found, not a kind of error)
    """The weights of that version are no longer here, or never were."""


@dataclass(frozen=True)
class DrafterVersion:
    """One swap. Numbers only grow: bringing weights back is a new version that `restores` one."""

    number: int
    label: str  # the pusher's
    sha256: str  # of the pushed file; empty for the drafter of the start and for group pushes
    origin: Origin
    committed_at: float  # seconds since the epoch
    restores: int | None = None


@dataclass
class Acceptance:
    """What one version's drafts were worth."""

    verifies: int = 0  # of single requests
    accepted_drafts: int = 0

    @property
    def accepted_length(self) -> float | None:
        """Tokens committed per verify, bonus included; None before the first."""
        return 1 + self.accepted_drafts / self.verifies if self.verifies else None


@dataclass
class Record:
    version: DrafterVersion
    acceptance: Acceptance = field(default_factory=Acceptance)
    verdict: str = ""  # the guard's

    def to_dict(self, serving: int, kept: bool) -> dict[str, Any]:
        return {
            **asdict(self.version),
            "serving": self.version.number == serving,
            "kept": kept,
            "verifies": self.acceptance.verifies,
            "accepted_length": self.acceptance.accepted_length,
            "verdict": self.verdict,
        }


class History(Generic[W]):
    """Records of the versions, and the weights of the last few."""

    def __init__(self, first: DrafterVersion, keep: int) -> None:
        """keep: how many sets of weights stay, the serving one among them."""
        self._keep = keep
        self._records: OrderedDict[int, Record] = OrderedDict({first.number: Record(first)})
        self._weights: OrderedDict[int, W] = OrderedDict()

    @property
    def serving(self) -> Record:
        return next(reversed(self._records.values()))

    def hold(self, number: int, weights: W) -> None:
        """Keep these weights as those of a version; the oldest beyond the limit are let go."""
        source = self.source_of(number)
        self._weights[source] = weights
        self._weights.move_to_end(source)
        while len(self._weights) > self._keep:
            self._weights.popitem(last=False)

    def add(self, version: DrafterVersion, weights: W) -> Record:
        """A swap happened: this version serves now."""
        record = Record(version)
        self._records[version.number] = record
        self.hold(version.number, weights)
        while len(self._records) > RECORDS:
            self._records.popitem(last=False)
        return record

    def source_of(self, number: int) -> int:
        """The version that brought the weights of this one: itself, unless it restored another."""
        record = self._records.get(number)
        if record is None or record.version.restores is None:
            return number
        return record.version.restores

    def holds(self, number: int) -> bool:
        return self.source_of(number) in self._weights

    def weights_of(self, number: int) -> W:
        if not self.holds(number):
            kept = sorted({n for n in self._records if self.holds(n)})
            raise NotKept(
                f"The weights of version {number} are not kept (kept: "
                f"{', '.join(map(str, kept)) or 'none'}); push them again."
            )
        return self._weights[self.source_of(number)]

    def before_serving(self) -> int:
        """The newest version whose weights are not the serving ones."""
        current = self.source_of(self.serving.version.number)
        for number in reversed(self._records):
            if self.source_of(number) != current:
                return self.source_of(number)
        raise NotKept("There is no earlier version to go back to; push one.")

    def record(self, number: int) -> Record | None:
        return self._records.get(number)

    def to_list(self) -> list[dict[str, Any]]:
        serving = self.serving.version.number
        return [each.to_dict(serving, self.holds(n)) for n, each in self._records.items()]
