"""How a draft tree's attention mask is laid out in memory."""

from __future__ import annotations

from enum import IntEnum

MAX_NODES = 64  # a node's ancestors are one bit each of a 64-bit word
MAX_PACKED_NODES = 32  # the widest element a bit-packed mask may have is 32 bits


class TreeMaskMode(IntEnum):
    """The three layouts SGLang's attention backends read; names and values are SGLang's.

    ``L`` is a request's length without its draft nodes, ``n`` its number of nodes.

    * ``FULL_MASK``: requests one after the other, each ``[n, L + n]``, one byte per cell. The
      first ``L`` columns (the committed prefix) belong to the caller.
    * ``QLEN_ONLY``: ``[batch, n, n]``, one byte per cell.
    * ``QLEN_ONLY_BITPACKING``: ``[batch, n]`` words of ``packed_bytes(n)`` bytes, little-endian;
      bit ``j`` of a node's word says that the node attends to node ``j``.
    """

    FULL_MASK = 0
    QLEN_ONLY = 1
    QLEN_ONLY_BITPACKING = 2


def packed_bytes(num_nodes: int) -> int:
    """Return the bytes one node takes in a bit-packed mask: 1, 2 or 4."""
    if num_nodes <= 8:
        return 1
    return 2 if num_nodes <= 16 else 4
