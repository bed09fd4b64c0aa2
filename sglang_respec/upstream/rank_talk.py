"""Rank 0's numbers on every rank of the tensor-parallel group, over the group of the hosts.

A policy that learns from times must learn from equal ones, or ranks would run different shapes.
"""

import torch
from sglang.srt.runtime_context import get_parallel


class RankTalk:
    """Collective: every rank calls in the same order. With one rank nothing is sent."""

    def __init__(self) -> None:
        parallel = get_parallel()
        self.size: int = parallel.tp_size
        self._group = parallel.tp_group if self.size > 1 else None
        self.is_first: bool = self._group is None or self._group.rank == self._group.ranks[0]

    def number(self, value: float) -> float:
        if self._group is None:
            return value
        return float(self._sent(torch.tensor([value], dtype=torch.float64)))

    def text(self, value: str) -> str:
        """Rank 0's text; what the others pass does not matter."""
        if self._group is None:
            return value
        data = value.encode()
        length = int(self.number(len(data)))
        if not length:
            return ""
        if not self.is_first:
            data = bytes(length)
        sent = self._sent(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return sent.numpy().tobytes().decode()

    def _sent(self, told: torch.Tensor) -> torch.Tensor:
        group = self._group
        assert group is not None
        torch.distributed.broadcast(told, src=group.ranks[0], group=group.cpu_group)
        return told
