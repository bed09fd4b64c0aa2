"""A forward pass leaves the scheduler's batch as it found it, at the cost of two dictionary calls.

A speculative round changes its batch on the way (mode, lengths, inputs), so SGLang saves every
field before it and puts it back after. It does so attribute by attribute, a hundred of them twice
in every step, which a small model's plain step on a CPU feels.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from operator import itemgetter
from typing import Any


def isolate(
    original: Callable[..., AbstractContextManager[None]],
    scheduler: Any,
    batch: Any,
    *,
    overlap: bool,
) -> AbstractContextManager[None]:
    """Around `Scheduler._forward_isolation`. With overlapped scheduling it also keeps tensors alive
    for another stream, and without speculation it saves one field: both stay SGLang's."""
    if overlap or batch.spec_algorithm.is_none():
        return original(scheduler, batch, overlap=overlap)
    return _Isolated(batch)


class _Isolated(AbstractContextManager[None]):
    """Every dataclass field of a batch is restored, however the pass ends; inside, its sampling
    info is a copy that one pass may use up."""

    def __init__(self, batch: Any) -> None:
        self._fields = vars(batch)
        self._names, self._read = _reader(batch.__class__)

    def __enter__(self) -> None:
        self._saved = self._read(self._fields)
        info = self._fields["sampling_info"]
        if info is not None:
            self._fields["sampling_info"] = info.copy_for_forward()

    def __exit__(self, *_: object) -> None:
        self._fields.update(zip(self._names, self._saved, strict=True))


@cache
def _reader(kind: Any) -> tuple[tuple[str, ...], Callable[[dict[str, Any]], tuple[Any, ...]]]:
    names = tuple(field.name for field in dataclasses.fields(kind))
    return names, itemgetter(*names)
