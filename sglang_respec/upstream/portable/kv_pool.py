"""Key/value pool of the portable platform: SGLang's own, with slot moves in PyTorch."""

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool


class PortableMHATokenToKVPool(MHATokenToKVPool):
    """The in-tree pool, minus its Triton slot copy.

    Moving the accepted path of a tree to the front of its request is a handful of rows;
    indexing gathers all sources before it writes, so overlapping moves stay correct.
    """

    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None

    def _move_kv_cache_impl(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        for buffer in (*self.k_buffer, *self.v_buffer):
            buffer[tgt_loc] = buffer[src_loc]
