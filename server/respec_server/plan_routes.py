"""The HTTP routes that show what the server runs, and why: `/respec/plan` and `/respec/state`."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from fastapi import APIRouter

from respec_server.doctor import versions
from respec_server.plan_schemas import PlanAnswer, StateAnswer
from respec_server.refusal import Refusal
from respec_server.routes import RefusingRoute
from respec_server.schemas import ErrorAnswer
from sglang_respec.errors import RespecError

TIMEOUT_S = 10.0  # a scheduler answers between two steps, and a long prefill is one
RESPONSES: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorAnswer, "description": "Nothing is planned here"},
    504: {"model": ErrorAnswer, "description": "The scheduler did not answer in time"},
}


class Engine(Protocol):
    """A running engine. `ask` raises `RespecError` where it has no answer, and `TimeoutError`."""

    async def ask(self, question: Literal["plan", "state"], timeout_s: float) -> dict[str, Any]: ...


def make_router(engine: Engine) -> APIRouter:
    router = APIRouter(route_class=RefusingRoute, tags=["planner"])

    async def answer(question: Literal["plan", "state"]) -> dict[str, Any]:
        try:
            return await engine.ask(question, TIMEOUT_S)
        except TimeoutError as error:
            raise Refusal(
                504,
                "no_answer",
                f"The scheduler did not answer within {TIMEOUT_S:.0f} s; it may be in a long "
                "prefill, so ask again.",
            ) from error
        except RespecError as error:
            raise Refusal(404, "no_plan", str(error)) from error

    @router.get("/respec/plan", response_model=PlanAnswer, responses=RESPONSES)
    async def plan() -> Any:
        """What would be chosen per batch size and why, the current choice, the last changes."""
        return await answer("plan")

    @router.get("/respec/state", response_model=StateAnswer, responses=RESPONSES)
    async def state() -> Any:
        """The policy, the configurations held, and what each did since the start."""
        return {**await answer("state"), "versions": dict(versions())}

    return router
