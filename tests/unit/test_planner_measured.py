"""What a server measures of itself, in which order, and what becomes of it."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from planner_cases import CHAIN, KEY, LONG

from sglang_respec.core import PLAIN
from sglang_respec.planner import Planner
from sglang_respec.planner.measured import Agenda, Samples, measure, to_profile
from sglang_respec.planner.profile import Profile

ROOM = {
    "max_batch_size": 64,
    "max_context_tokens": 4096,
    "pool_tokens": 10**6,
    "reserve_tokens": 16,
    "window_tokens": 512,
}


class Machine:
    """A bench on which a round costs so much a row, and whose clock is the sum of what ran."""

    def __init__(self, second=1e-3, slow_first=1.0):
        self.now, self.second, self.slow_first = 0.0, second, slow_first
        self.open, self.calls = None, []

    @contextmanager
    def batch(self, batch_size, context_tokens):
        assert self.open is None, "one at a time"
        self.open = (batch_size, context_tokens)
        self.seen = set()
        yield self
        self.open = None

    def round_seconds(self, config):
        size, context = self.open
        self.calls.append((config, size, context))
        seconds = self.second * (1 + 0.1 * config.num_draft_tokens * size + 1e-5 * size * context)
        if config not in self.seen:
            seconds *= self.slow_first
        self.seen.add(config)
        self.now += seconds
        return seconds

    def extend_seconds(self, tokens):
        seconds = self.second * (0.1 + 0.01 * tokens * self.open[0])
        self.now += seconds
        return seconds

    def elapsed_s(self):
        return self.now

    def shared(self, seconds):
        return seconds


def agenda(**changes):
    return Agenda.within((CHAIN, LONG), **{**ROOM, **changes})


def test_the_profile_says_what_the_machine_does():
    machine = Machine(slow_first=50.0)
    samples = measure(machine, agenda(), budget_s=1e9)
    made = to_profile(samples, KEY, "a test", {LONG: 5})
    other = Machine()
    for size, context in ((1, 128), (4, 1024), (64, 1024)):
        with other.batch(size, context):
            for config in (PLAIN, CHAIN, LONG):
                assert made.round_seconds(config, size, context) == pytest.approx(
                    other.round_seconds(config)
                ), "the first, slow call of each configuration does not count"
    assert made.relative_error == pytest.approx(0.0, abs=1e-9), "this machine is linear"
    assert made.extend_seconds(4 * 64, 4, 128) == pytest.approx(1e-3 * (0.1 + 0.01 * 64 * 4))
    assert made.graph_bytes == {LONG: 5}
    assert Profile.from_json(made.to_json()) == made
    Planner(made, (CHAIN, LONG))


def test_it_ends_in_time_with_what_there_is():
    machine = Machine()
    samples = measure(machine, agenda(), budget_s=0.4)
    assert samples.seconds <= 0.4
    made = to_profile(samples, KEY, "a test")
    assert made.rounds[PLAIN].batch_sizes[0] == 1
    assert made.rounds[PLAIN].batch_sizes[-1] < 64


def test_a_batch_of_one_is_measured_without_any_time():
    samples = measure(Machine(), agenda(), budget_s=0.0)
    assert set(samples.rounds) == {(1, 128)}
    assert to_profile(samples, KEY, "a test").rounds[LONG].batch_sizes == (1,)


def test_time_that_is_left_makes_medians_steadier():
    little, much = (
        measure(Machine(), agenda(max_batch_size=4), budget_s=each) for each in (0.2, 1e9)
    )
    assert len(much.rounds[1, 128][PLAIN]) > len(little.rounds[1, 128][PLAIN])


def at(config, size, context):
    machine = Machine()
    with machine.batch(size, context):
        return machine.round_seconds(config)


def test_the_largest_batch_is_measured_before_longer_contexts():
    samples = measure(Machine(), agenda(), budget_s=0.6)
    assert (64, 128) in samples.rounds
    assert (64, 1024) not in samples.rounds
    made = to_profile(samples, KEY, "a test").rounds[LONG]
    assert (made.batch_sizes[-1], made.context_tokens) == (64, (128, 1024))


def test_what_a_context_adds_to_a_batch_that_did_not_run_is_computed():
    samples = Samples()
    for size, context in ((1, 128), (4, 128), (64, 128), (1, 1024), (4, 1024)):
        samples.rounds[size, context] = {each: [at(each, size, context)] for each in (PLAIN, CHAIN)}
    made = to_profile(samples, KEY, "a test")
    for config in (PLAIN, CHAIN):  # attention takes time in proportion to requests on this machine
        found = made.round_seconds(config, 64, 1024)
        assert found == pytest.approx(at(config, 64, 1024))
        assert found > at(config, 64, 128)


def test_a_clock_that_is_off_at_a_long_context_takes_nothing_away():
    samples = Samples()
    for size, context in ((1, 128), (16, 128), (1, 1024)):
        samples.rounds[size, context] = {PLAIN: [at(PLAIN, size, context) / (1 + (context > 128))]}
    grid = to_profile(samples, KEY, "a test").rounds[PLAIN]
    assert grid.at(1, 16, 1024) == pytest.approx(at(PLAIN, 16, 128))


def test_the_agenda_fits_the_server():
    sizes = (1, 4, 16, 64)
    assert agenda().batches == tuple((size, context) for context in (128, 1024) for size in sizes)
    assert max(size for size, _ in agenda(max_batch_size=48).batches) == 48
    small = agenda(pool_tokens=1000)
    assert small.batches
    assert all(size * (context + 16) <= 1000 for size, context in small.batches)
    assert {context for _, context in agenda(max_context_tokens=100).batches} == {84}
    assert agenda(pool_tokens=100).batches == ()
    assert agenda(window_tokens=10).extend_widths == (1, 8)
    assert agenda(window_tokens=0).extend_widths == ()
