"""Why a drafter push was not applied: one HTTP status and one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from sglang_respec.drafter.schema import Problem
from sglang_respec.errors import RespecError

SHOWN_PROBLEMS = 5  # in the sentence; the list has all of them


class Refusal(RespecError):  # noqa: N818 (it is what happened, not a kind of error)
    """Nothing was changed. `code` is for machines and stays; the message may be reworded."""

    def __init__(
        self, status: int, code: str, message: str, problems: Sequence[Problem] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.problems = tuple(problems)


def wrong_tensors(problems: Sequence[Problem]) -> Refusal:
    """422 with every offending tensor, and the first few of them in the sentence."""
    shown = "; ".join(str(each) for each in problems[:SHOWN_PROBLEMS])
    more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    return Refusal(
        422,
        "wrong_tensors",
        f"The push does not fit the serving drafter: {shown}{more}. GET /drafter/schema lists "
        "what it consists of.",
        problems,
    )
