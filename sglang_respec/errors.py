"""What a user can do wrong, said in one sentence that ends with the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RespecError(ValueError):
    """A mistake in what the user gave us. The message is one sentence with its remedy.

    The command line prints the message alone, without a traceback.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for a misspelt name, or the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(repr(each) for each in close)}?"
    return f"; known: {', '.join(names)}."
