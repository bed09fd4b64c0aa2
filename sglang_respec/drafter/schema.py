"""What a push must hold: the tensors of the drafter that is serving, under every name in use.

The schema comes from the live drafter, so a push is held against what will be overwritten and not
against a configuration that may have drifted from it. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sglang_respec.drafter.reader import ITEM_BYTES, MAX_HEADER_BYTES

Role = Literal["weight", "shared", "map"]

FLOAT_TYPES = ("F32", "F16", "BF16")  # converted to the live type as they are loaded
MAP_TYPES = ("I64", "I32")
D2T, T2D = "d2t", "t2d"
WIDEST_ITEM_BYTES = 8  # of the vocabulary maps; a weight is at most a float32

# Names that were or are in use elsewhere, and what SGLang calls the same tensor.
_RENAMED = (
    (re.compile(r"^model\."), ""),
    (re.compile(r"^midlayer\."), "layers.0."),  # SpecForge
    (re.compile(r"^aux_norm_low\."), "fc_norm.0."),
    (re.compile(r"^aux_norm_mid\."), "fc_norm.1."),
    (re.compile(r"^aux_norm_high\."), "fc_norm.2."),
)
# Copies of the target that `speculators` keeps in a drafter's state.
_TARGETS_OWN = re.compile(r"^verifier_")


@dataclass(frozen=True)
class Slot:
    """One tensor of a drafter's checkpoint.

    role: `weight` is the drafter's own; `shared` is the target's tensor, which a push may carry
    and which is never written; `map` is d2t, which sends draft ids to target ids.
    """

    name: str  # canonical: without `model.`, layers counted
    shape: tuple[int, ...]  # of the whole tensor, before it is split over ranks
    dtype: str  # as it is served
    role: Role = "weight"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a push, for machines; `__str__` is for people."""

    tensor: str
    problem: str
    expected: str | None = None
    got: str | None = None

    def __str__(self) -> str:
        detail = f" (expected {self.expected}, got {self.got})" if self.expected else ""
        return f"{self.tensor}: {self.problem}{detail}"


@dataclass(frozen=True)
class DrafterSchema:
    """What the serving drafter consists of."""

    slots: tuple[Slot, ...]
    vocab_size: int  # of the target

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DrafterSchema:
        slots = (Slot(**{**each, "shape": tuple(each["shape"])}) for each in values["slots"])
        return cls(tuple(slots), values["vocab_size"])

    def to_dict(self) -> dict[str, Any]:
        return {
            "slots": [{**asdict(each), "shape": list(each.shape)} for each in self.slots],
            "vocab_size": self.vocab_size,
        }

    @property
    def max_push_bytes(self) -> int:
        """No honest push is larger: every tensor in float32, the maps, and a header."""
        items = sum(_product(each.shape) for each in self.slots if each.role != "map")
        maps = sum(_product(each.shape) for each in self.slots if each.role == "map")
        # `speculators` may add the target's head and norm, no larger than its embedding.
        embedding = max((_product(s.shape) for s in self.slots if s.role == "shared"), default=0)
        return (
            4 * (items + embedding)
            + (maps + self.vocab_size) * WIDEST_ITEM_BYTES
            + (MAX_HEADER_BYTES)
        )


@dataclass(frozen=True)
class Declared:
    """A tensor as the sender describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """A push whose names, shapes and types fit."""

    take: tuple[str, ...]  # the sender's names of what will be written, in the sender's order
    ignored: tuple[str, ...]  # the target's own tensors
    d2t: str | None  # the sender's name of it
    t2d: str | None


def canonical(name: str) -> str:
    """SGLang's name for a tensor of a drafter's checkpoint."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def match(schema: DrafterSchema, declared: Iterable[Declared]) -> Match | list[Problem]:
    """Hold what a push declares against the serving drafter: all that is wrong with it, or a fit.

    SGLang drops names that it does not know and leaves what is missing as it was, so a misspelt
    push would serve half of two drafters; here every name must be known and none may be missing.
    """
    slots = {each.name: each for each in schema.slots}
    problems: list[Problem] = []
    sent: dict[str, str] = {}
    ignored: list[str] = []
    for tensor in declared:
        name = canonical(tensor.name)
        if name in sent:
            problems.append(Problem(tensor.name, f"is the same tensor as {sent[name]!r}"))
            continue
        sent[name] = tensor.name
        if name == T2D:
            problems += _t2d_problems(schema, tensor)
        elif _TARGETS_OWN.match(name):
            ignored.append(tensor.name)
        elif name not in slots:
            problems.append(Problem(tensor.name, "is no tensor of the serving drafter"))
        else:
            problems += _slot_problems(slots[name], tensor)
            if slots[name].role == "shared":
                ignored.append(tensor.name)
    for slot in schema.slots:
        if slot.role != "shared" and slot.name not in sent:
            problems.append(Problem(slot.name, "is missing"))
    if problems:
        return problems
    left_out = {*ignored, sent.get(T2D)}
    return Match(
        take=tuple(each for each in sent.values() if each not in left_out),
        ignored=tuple(ignored),
        d2t=sent.get(D2T),
        t2d=sent.get(T2D),
    )


def map_problems(
    schema: DrafterSchema, d2t: list[int], t2d: list[bool] | None = None
) -> list[Problem]:
    """Whether the vocabulary map stays inside the target's vocabulary and t2d is its inverse."""
    targets = [draft_id + offset for draft_id, offset in enumerate(d2t)]
    outside = next((i for i, each in enumerate(targets) if not 0 <= each < schema.vocab_size), None)
    if outside is not None:
        return [
            Problem(
                D2T, f"sends draft token {outside} outside the target's vocabulary; d2t holds "
                "differences (target id - draft id)",
                f"0 to {schema.vocab_size - 1}", str(targets[outside]),
            )
        ]  # fmt: skip
    if t2d is not None and {i for i, each in enumerate(t2d) if each} != set(targets):
        return [Problem(T2D, "names other target tokens than d2t reaches")]
    return []


def _slot_problems(slot: Slot, tensor: Declared) -> list[Problem]:
    problems = []
    if tensor.shape != slot.shape:
        problems.append(
            Problem(tensor.name, "has the wrong shape", str(list(slot.shape)),
                    str(list(tensor.shape)))
        )  # fmt: skip
    allowed = MAP_TYPES if slot.role == "map" else FLOAT_TYPES
    if slot.role != "shared" and tensor.dtype not in allowed:
        problems.append(
            Problem(tensor.name, "has the wrong type", " or ".join(allowed), tensor.dtype)
        )
    return problems


def _t2d_problems(schema: DrafterSchema, tensor: Declared) -> list[Problem]:
    if tensor.shape != (schema.vocab_size,):
        expected, got = str([schema.vocab_size]), str(list(tensor.shape))
        return [Problem(tensor.name, "has the wrong shape", expected, got)]
    if ITEM_BYTES.get(tensor.dtype) != 1:
        return [Problem(tensor.name, "has the wrong type", "BOOL", tensor.dtype)]
    return []


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for each in shape:
        total *= each
    return total
