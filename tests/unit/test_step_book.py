"""The book against steps told to it one by one, late results and retractions among them."""

from __future__ import annotations

import json

import pytest

from sglang_respec.core import PLAIN, BatchStats, Plan, RankCounts, SpeculationConfig, StepRecord
from sglang_respec.step_book import LAST_DECISIONS, LAST_SWITCHES, RequestSteps, StepBook

CHAIN = SpeculationConfig(3, 1, 4)
TREE = SpeculationConfig(3, 4, 8)


class Server:
    """Tells a book of steps as a worker does; `late` results wait until `settle`."""

    def __init__(self, *configs: SpeculationConfig) -> None:
        self.now = 1000.0
        self.book = StepBook(configs, clock=lambda: self.now)
        self._out: list[tuple[Plan, BatchStats, int]] = []

    def launch(self, config: SpeculationConfig, batch: int = 2, **plan: object) -> None:
        stats = BatchStats(batch, 50.0, (batch, 0, 0), gap_tokens=7)
        chosen = Plan(config, **{"reason": "best", **plan})
        self._out.append((chosen, stats, self.book.launched(chosen, stats)))

    def settle(
        self,
        seconds: float | None = 0.5,
        tokens: int | None = None,
        ranks: tuple[RankCounts, ...] = (),
        **catch_up: float,
    ) -> None:
        plan, stats, plain_through = self._out.pop(0)
        committed = stats.batch_size if tokens is None else tokens
        classes = stats.requests_per_class
        record = StepRecord(plan.config, stats.batch_size, 50.0, classes, committed, seconds, ranks)
        self.book.finished(plan, record, plain_through, seconds, **catch_up)

    def step(self, config: SpeculationConfig, **settled: object) -> None:
        self.launch(config)
        self.settle(**settled)


def configs(book: StepBook) -> dict[str, dict]:
    return {each["config"]: each for each in book.facts()["configs"]}


def test_nothing_has_happened():
    facts = Server(PLAIN, CHAIN).book.facts()
    assert facts["steps"] == facts["switches"] == 0
    assert {each["time_share"] for each in facts["configs"]} == {0.0}
    assert facts["decision_us"] == {}
    assert [each["acceptance"] for each in facts["depths"]] == [None] * 3
    json.dumps(facts, allow_nan=False)


def test_time_shares_sum_to_one():
    server = Server(PLAIN, CHAIN)
    server.step(PLAIN, seconds=1.0)
    server.step(CHAIN, seconds=3.0, tokens=6)
    server.step(CHAIN, seconds=None)  # after a prefill: its time is not known
    found = configs(server.book)
    assert (found["0,1,1"]["time_share"], found["3,1,4"]["time_share"]) == (0.25, 0.75)
    assert found["3,1,4"]["steps"] == 2
    assert found["3,1,4"]["accepted_length"] == (6 + 2) / 4
    assert server.book.facts()["steps"] == 3


def test_a_catch_up_takes_time_and_measures_no_step():
    server = Server(PLAIN, CHAIN)
    server.step(CHAIN, seconds=0.5)
    server.step(CHAIN, seconds=2.0, catch_up_tokens=9, catch_up_s=1.5)
    facts = server.book.facts()
    assert (facts["catch_ups"], facts["catch_up_tokens"], facts["catch_up_s"]) == (1, 9, 1.5)
    found = configs(server.book)["3,1,4"]
    assert (found["busy_s"], found["measured_steps"], found["step_s"]) == (2.5, 1, 0.5)


def test_predictions_are_held_against_what_they_were_made_for():
    server = Server(CHAIN)
    server.launch(CHAIN, predicted_s=0.4)
    server.settle(seconds=0.5)
    server.launch(CHAIN, predicted_s=0.7)
    server.settle(seconds=0.5)
    server.launch(CHAIN, predicted_s=9.0)
    server.settle(seconds=None)
    server.step(CHAIN, seconds=8.0)  # this one was not predicted
    found = configs(server.book)["3,1,4"]
    assert found["predicted_step_s"] == pytest.approx(0.55)
    assert found["prediction_error"] == pytest.approx(0.3)
    assert found["predicted_steps"] == 2


def test_switches_have_a_reason_and_a_place():
    server = Server(PLAIN, CHAIN, TREE)
    for config, reason in ((PLAIN, "first"), (CHAIN, "probe"), (CHAIN, "probe"), (PLAIN, "hold")):
        server.launch(config, reason=reason)
        server.settle()
    facts = server.book.facts()
    assert facts["switches"] == 2
    assert facts["switches_per_1000_steps"] == 500.0
    assert {(each["config"], each["reason"]) for each in facts["switches_by_reason"]} == {
        ("3,1,4", "probe"),
        ("0,1,1", "hold"),
    }
    assert facts["steps_by_reason"] == {"first": 1, "probe": 2, "hold": 1}
    assert configs(server.book)["3,1,4"]["probe_steps"] == 2
    newest, oldest = server.book.switch_facts()
    assert (oldest["before"], oldest["after"], oldest["step"]) == ("0,1,1", "3,1,4", 1)
    assert (newest["reason"], newest["step"], newest["gap_tokens"]) == ("hold", 3, 7)
    assert newest["at"] == 1000.0


def test_only_the_last_switches_are_kept():
    server = Server(PLAIN, CHAIN)
    for step in range(LAST_SWITCHES + 10):
        server.step(CHAIN if step % 2 else PLAIN)
    assert len(server.book.switch_facts()) == LAST_SWITCHES
    assert server.book.facts()["switches"] == LAST_SWITCHES + 9


def test_acceptance_per_depth():
    server = Server(TREE)
    rows = (
        RankCounts(0, 1, True, (5, 2), 3),
        RankCounts(2, 1, True, (1,), 1),
        RankCounts(0, 2, False, (0, 4), 0),
    )
    server.step(TREE, ranks=rows)
    first, second, third = server.book.depth_facts()
    assert (first["offered"], first["accepted"], first["first_accepted"]) == (12, 8, 6)
    assert first["acceptance"] == pytest.approx(8 / 12)
    assert (second["acceptance"], second["first_accepted"]) == (1.0, 0)
    assert third["acceptance"] is None


def test_decision_times_are_those_of_the_last_decisions():
    book = Server(PLAIN).book
    for _ in range(10):
        book.decided(9_000_000)
    for nanoseconds in range(1, LAST_DECISIONS + 1):
        book.decided(nanoseconds * 1000)
    found = book.decision_quantiles_us()
    assert found["max"] == LAST_DECISIONS
    assert found["p50"] == pytest.approx(LAST_DECISIONS / 2, abs=1)
    assert found["p99"] == pytest.approx(0.99 * LAST_DECISIONS, abs=1)


def test_a_request_counts_the_plain_steps_it_was_in():
    server = Server(PLAIN, CHAIN)
    server.step(PLAIN)
    request = RequestSteps(server.book)
    request.join()
    for config in (PLAIN, CHAIN, PLAIN):
        server.step(config)
    assert request.plain == 2


def test_a_step_under_way_when_a_request_joins_is_not_its_own():
    server = Server(PLAIN)
    server.launch(PLAIN)
    request = RequestSteps(server.book)
    request.join()  # its prefill is launched before the results of that step are there
    server.settle()
    assert request.plain == 0
    server.launch(PLAIN)
    server.launch(PLAIN)  # launched before the end of the request is seen
    server.settle()
    assert request.plain == 1


def test_a_retracted_request_leaves_and_joins_again():
    server = Server(PLAIN)
    request = RequestSteps(server.book)
    request.join()
    server.step(PLAIN)
    server.launch(PLAIN)  # its results are thrown away for this request
    request.leave()
    server.settle()
    server.step(PLAIN)
    assert request.plain == 1
    request.join()
    request.join()  # in two chunks
    server.step(PLAIN)
    assert request.plain == 2


def test_retracted_before_its_first_step():
    server = Server(PLAIN)
    server.launch(PLAIN)
    request = RequestSteps(server.book)
    request.join()
    request.leave()
    server.settle()
    assert request.plain == 0


def test_a_configuration_nobody_announced():
    server = Server()
    server.step(CHAIN)
    assert set(configs(server.book)) == {"3,1,4"}
