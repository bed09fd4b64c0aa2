"""Weights that a trainer broadcasts in a process group, gloo or NCCL, straight into staging.

The group is made of torch's own parts, so a trainer needs nothing of this package:

    store = TCPStore(address, port, world_size, is_master=True, timeout=timeout)
    group = ProcessGroupGloo(PrefixStore(name, store), rank=0, size=world_size, timeout=timeout)
    for tensor in tensors: group.broadcast(tensor, 0).wait()

torch's TCPStore listens on all interfaces and knows no password: for trusted networks only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore

from sglang_respec.drafter.stage import TORCH_TYPES
from sglang_respec.errors import RespecError

BACKENDS = ("gloo", "nccl")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


@dataclass(frozen=True)
class GroupAddress:
    """Where the trainer, rank 0, waits; the server's ranks are 1 to tensor-parallel size."""

    address: str
    port: int
    world_size: int
    name: str
    backend: str
    timeout_s: float

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise RespecError(f"The backend must be gloo or nccl, got {self.backend!r}.")
        if not _is_host(self.address) or not 0 < self.port < 1 << 16:
            raise RespecError(
                f"{self.address!r} and {self.port} are not the address and port of a trainer."
            )


def join(place: GroupAddress, rank: int, *, store_is_here: bool = False) -> Any:
    """The process group as this rank; raises torch's `DistStoreError` when nobody is there."""
    timeout = timedelta(seconds=place.timeout_s)
    store: Any = TCPStore(
        place.address, place.port, place.world_size, is_master=store_is_here, timeout=timeout,
        wait_for_workers=False,
    )  # fmt: skip
    store = PrefixStore(place.name, store)
    if place.backend == "gloo":
        return torch.distributed.ProcessGroupGloo(store, rank, place.world_size, timeout)
    options = torch.distributed.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return torch.distributed.ProcessGroupNCCL(store, rank, place.world_size, options)


def receive(
    place: GroupAddress,
    rank: int,
    tensors: list[tuple[str, str, tuple[int, ...]]],  # name, type as safetensors has it, shape
    device: torch.device,
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor as rank 0 broadcasts it, in this order. All are received, even those ignored."""
    group = join(place, rank)
    where = device if place.backend == "nccl" else torch.device("cpu")
    for name, dtype, shape in tensors:
        tensor = torch.empty(shape, dtype=TORCH_TYPES[dtype], device=where)
        group.broadcast(tensor, 0).wait(timedelta(seconds=place.timeout_s))
        yield name, tensor


def send(place: GroupAddress, tensors: Iterable[Tensor]) -> None:
    """The trainer's side: open the group as rank 0 and broadcast these, in the pushed order.

    Blocks until every rank of the server has joined, which they do while its answer to the push is
    awaited in another thread.
    """
    group = join(place, 0, store_is_here=True)
    for tensor in tensors:
        group.broadcast(tensor.detach().contiguous(), 0).wait(timedelta(seconds=place.timeout_s))


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST.fullmatch(text) is not None
    return True
