"""Tensors that a trainer broadcasts arrive as they were sent, or the push fails and says why."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore

from respec_server.process import free_port
from sglang_respec.drafter.group import GroupAddress, join, receive, send
from sglang_respec.drafter.swap import STAGING_ERRORS
from sglang_respec.errors import RespecError

CPU = torch.device("cpu")
TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor([1.5, -2.5], dtype=torch.bfloat16),
    "d2t": torch.tensor([1, 2, 3]),
    "t2d": torch.tensor([True, False]),
}
DECLARED = [
    ("a", "F32", (2, 3)), ("b", "BF16", (2,)), ("d2t", "I64", (3,)), ("t2d", "BOOL", (2,)),
]  # fmt: skip


def place(world_size: int = 2, timeout_s: float = 20.0) -> GroupAddress:
    return GroupAddress("127.0.0.1", free_port(), world_size, "g", "gloo", timeout_s)


def received(where: GroupAddress, ranks: int) -> tuple[list[threading.Thread], dict[int, object]]:
    """Threads of the server's ranks, and what each of them got or met."""
    found: dict[int, object] = {}

    def run(rank: int) -> None:
        try:
            found[rank] = dict(receive(where, rank, DECLARED, CPU))
        except STAGING_ERRORS as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(1, ranks + 1)]
    for each in threads:
        each.start()
    return threads, found


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_gets_what_was_sent(ranks):
    where = place(1 + ranks)
    threads, found = received(where, ranks)
    send(where, TENSORS.values())
    for each in threads:
        each.join()
    for rank in range(1, ranks + 1):
        got = found[rank]
        assert isinstance(got, dict), got
        assert all(torch.equal(got[name], TENSORS[name]) for name in TENSORS)


def test_a_trainer_needs_torch_alone():
    """The example of docs/update-drafter.md."""
    where, wait = place(), timedelta(seconds=20)
    threads, found = received(where, 1)
    store = TCPStore(
        "127.0.0.1", where.port, 2, is_master=True, timeout=wait, wait_for_workers=False
    )
    members = ProcessGroupGloo(PrefixStore("g", store), 0, 2, wait)
    for tensor in TENSORS.values():
        members.broadcast(tensor.contiguous(), 0).wait()
    threads[0].join()
    assert isinstance(found[1], dict), found[1]
    assert set(found[1]) == set(TENSORS)


def test_a_trainer_that_stops_half_way():
    where = place(timeout_s=3.0)
    threads, found = received(where, 1)
    group = join(where, 0, store_is_here=True)
    group.broadcast(TENSORS["a"], 0).wait()
    del group
    threads[0].join()
    assert isinstance(found[1], Exception)


def test_a_trainer_that_never_comes():
    threads, found = received(place(timeout_s=1.0), 1)
    threads[0].join()
    assert isinstance(found[1], Exception)


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend": "mpi"}, {"port": 0}, {"port": 70000}, {"address": "a b"}, {"address": ""},
        {"address": "http://x"}, {"address": "-x"},
    ],
    ids=str,
)  # fmt: skip
def test_addresses_that_are_none(wrong):
    values = {"address": "h", "port": 1, "world_size": 2, "name": "g", "backend": "gloo",
              "timeout_s": 1.0}  # fmt: skip
    with pytest.raises(RespecError):
        GroupAddress(**{**values, **wrong})
