"""What a replacement in SGLang is: one row of the table of hooks."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

# `assign` sets a name that SGLang leaves None on this device: its `HookRegistry` would look
# for every other None in the process and replace those too.
Kind = Literal["replace", "around", "after", "before", "assign"]


@dataclass(frozen=True)
class Hook:
    """One replacement.

    target: dotted path inside SGLang.
    kind: replace, around, after or before, as SGLang's `HookRegistry` has them; or assign.
    replacement: `module:name` of what comes there, or a function that returns it; either is
        imported late, so that listing hooks imports nothing.
    symptom, cause, remove_when: why it is here and when it can go.
    """

    name: str
    target: str
    kind: Kind
    replacement: str | Callable[[], Any]
    symptom: str
    cause: str
    remove_when: str

    def make(self) -> Any:
        """Import and return what comes to the target."""
        if callable(self.replacement):
            return self.replacement()
        module, _, name = self.replacement.partition(":")
        return getattr(import_module(module), name)
