"""`/respec/plan` and `/respec/state` in front of an engine that answers, refuses or stays silent;
and `respec status --watch` in front of them."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from rich.console import Console

from respec_server import plan_routes
from respec_server.cli import main
from respec_server.plan_schemas import PlanAnswer, StateAnswer
from respec_server.plan_text import plan_tables
from respec_server.process import free_port
from sglang_respec.core import BatchStats, SpeculationConfig, StepRecord
from sglang_respec.errors import RespecError
from sglang_respec.planner import Planner
from sglang_respec.planner.contest import load_profile
from sglang_respec.step_book import StepBook

CHAIN = SpeculationConfig(3, 1, 4)


class Engine:
    """A planner and a book that some steps went through, as a scheduler has them."""

    def __init__(self) -> None:
        self.planner = Planner(load_profile("cpu_demo_pair"), [CHAIN])
        self.book = StepBook(self.planner.configs)
        self.says: Exception | None = None
        self.drive(40)

    def drive(self, steps: int) -> None:
        stats = BatchStats(4, 100.0, (4, 0, 0))
        for _ in range(steps):
            self.book.decided(20_000)
            plan = self.planner.decide(stats)
            through = self.book.launched(plan, stats)
            tokens = 4 if plan.config.is_plain else 12
            record = StepRecord(plan.config, 4, 100.0, (4, 0, 0), tokens, 0.02)
            self.planner.record(record)
            self.book.finished(plan, record, through, 0.02)

    async def ask(self, question: str, timeout_s: float) -> dict[str, Any]:
        assert timeout_s > 0
        if self.says is not None:
            raise self.says
        return self.plan() if question == "plan" else self.state()

    def plan(self) -> dict[str, Any]:
        return {
            "setting": "auto",
            **self.planner.table(),
            "measured": self.book.facts()["configs"],
            "measured_depths": self.book.depth_facts(),
            "last_switches": self.book.switch_facts(),
        }

    def state(self) -> dict[str, Any]:
        tap = {"ring_bytes": 2**20, "window_tokens": 512, "slots": 9, "overflow": "catch_up"}
        return {
            "policy": "auto", "own": "3,1,4", "held": ["0,1,1", "3,1,4"], "current": "3,1,4",
            "reason": "best", "running_requests": 4, "tap": {**tap, "plain_prefill": "warm"},
            "profile": None, "drafter_version": 2, **self.book.facts(),
        }  # fmt: skip


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:
    app = FastAPI()
    app.include_router(plan_routes.make_router(engine))
    app.get("/v1/models")(lambda: {"data": [{"id": "target"}]})
    app.get("/server_info")(lambda: {"version": "0.5.23", "internal_states": []})
    app.get("/v1/loads")(lambda: {"loads": []})
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def get(url: str, path: str) -> httpx.Response:
    return httpx.get(url + path, timeout=10, trust_env=False)


def test_the_plan(url: str, engine: Engine) -> None:
    plan = get(url, "/respec/plan").json()
    PlanAnswer.model_validate(plan, extra="forbid")
    assert plan["rows"] == engine.planner.table()["rows"]
    assert plan["current"] in ("0,1,1", "3,1,4")
    assert plan["batch_size"] in {each["batch_size"] for each in plan["rows"]}
    assert [each["temperature_class"] for each in plan["acceptance"]] == ["greedy", "low", "high"]


def test_the_state(url: str, engine: Engine) -> None:
    state = get(url, "/respec/state").json()
    StateAnswer.model_validate(state, extra="forbid")
    assert state["steps"] == 40
    assert state["versions"]["sglang"] == "0.5.23"
    for each in state["configs"]:
        assert each["predicted_steps"] == each["steps"]


def test_what_the_schemas_leave_out(engine: Engine) -> None:
    """Nothing: an answer's field that no schema names would be dropped without a word."""
    assert set(engine.plan()) <= set(PlanAnswer.model_fields)
    assert {*engine.state(), "versions"} == set(StateAnswer.model_fields)
    config = StateAnswer.model_validate({**engine.state(), "versions": {}}).configs[0]
    assert set(engine.state()["configs"][0]) == set(type(config).model_fields)


@pytest.mark.parametrize(
    ("says", "status", "code"),
    [(RespecError("No drafter."), 404, "no_plan"), (TimeoutError(), 504, "no_answer")],
)
@pytest.mark.parametrize("path", ["/respec/plan", "/respec/state"])
def test_no_answer(
    url: str, engine: Engine, path: str, says: Exception, status: int, code: str
) -> None:
    engine.says = says
    answer = get(url, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["message"].endswith(".")


def test_watching(url: str, engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", url, "--watch", "0.01", "--count", "3"]) == 0
    text = capsys.readouterr().out
    assert text.count("auto; holds plain, 3,1,4") == 3
    assert "version 2" in text


def test_watching_a_server_that_plans_nothing(
    url: str, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.says = RespecError("No drafter.")
    assert main(["status", "--url", url, "--watch", "0.01", "--count", "1"]) == 0
    assert "plans nothing" in capsys.readouterr().out


def test_watching_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "http://127.0.0.1:9", "--watch"]) == 1
    assert "No server answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--watch", "0"], ["--watch", "nan"], ["--watch", "--count", "0"],
              ["--watch", "--json"]],
)  # fmt: skip
def test_what_cannot_be_watched(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *flags]) == 2
    assert "--watch" in capsys.readouterr().err


def shown(*answers: dict[str, Any]) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(plan_tables(*answers))
    return console.file.getvalue()


def row(text: str, name: str) -> list[str]:
    return next(
        found
        for line in text.splitlines()
        if (found := line.split()) and found[0] == name and found[1].endswith(("%", "-"))
    )


def test_shares_are_of_the_time_between_two_looks(engine: Engine) -> None:
    earlier = engine.state()
    time.sleep(0.001)
    chain_before = next(e["steps"] for e in earlier["configs"] if e["config"] == "3,1,4")
    engine.drive(30)
    state = engine.state()
    total, since = shown(state, engine.plan()), shown(state, engine.plan(), earlier)
    steps = {name: int(row(total, name)[2]) for name in ("plain", "3,1,4")}
    assert sum(steps.values()) == 70
    assert int(row(since, "3,1,4")[2]) == steps["3,1,4"] - chain_before
    # Each step of 4 requests takes 20 ms here and commits 12 tokens.
    assert row(since, "3,1,4")[3] == "600"
    assert row(since, "plain")[1] == "0%"


def test_a_server_that_started_again_is_shown_from_its_start(engine: Engine) -> None:
    state = engine.state()
    later = {**state, "uptime_s": state["uptime_s"] + 100}
    assert shown(state, engine.plan(), later) == shown(state, engine.plan())


def test_before_the_first_step() -> None:
    engine = Engine.__new__(Engine)
    engine.planner, engine.says = Planner(load_profile("cpu_demo_pair"), [CHAIN]), None
    engine.book = StepBook(engine.planner.configs)
    text = shown(engine.state(), engine.plan())
    assert row(text, "plain")[1:6] == ["-", "0", "-", "-", "-"]
