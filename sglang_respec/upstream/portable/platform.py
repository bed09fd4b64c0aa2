"""Out-of-tree SGLang platform for a machine with no GPU.

SGLang's in-tree CPU engine needs compiled AMX kernels that no package index carries.
Declaring an out-of-tree platform instead makes SGLang take its device-neutral paths; the
gaps that remain are filled by the hooks in `sglang_respec.upstream.hooks`.
"""

import os
from typing import Any

import torch
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import PlatformCapabilities, SRTPlatform

from sglang_respec.config import load_config
from sglang_respec.upstream.portable.heap import keep_freed_memory
from sglang_respec.upstream.portable.index_ops import speculative_cache_locs

PORTABLE_BACKEND_NAME = "portable"
EAGLE_FAMILY = ("EAGLE", "EAGLE3", "STANDALONE")


class PortablePlatform(CpuDeviceMixin, SRTPlatform):
    """CPU device operations, no Triton, no graphs, PyTorch attention."""

    _enum = PlatformEnum.OOT
    capabilities = PlatformCapabilities()

    def is_pin_memory_available(self, device: Any = None) -> bool:
        return False

    def get_device(self, device_id: int = 0) -> str:
        """The device by name, as the interface says; the in-tree mixin returns an object,
        and SGLang's detection of a missing `--device` splits it as text."""
        return "cpu"

    def get_default_attention_backend(self) -> str:
        return PORTABLE_BACKEND_NAME

    def get_default_speculative_draft_attention_backend(self, algorithm: str) -> str:
        return PORTABLE_BACKEND_NAME

    def supports_speculative_draft_attention_backend(self, algorithm: str, backend: str) -> bool:
        return backend == PORTABLE_BACKEND_NAME

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        return algorithm in EAGLE_FAMILY

    def get_speculative_cache_locs_fn(self) -> Any:
        return speculative_cache_locs

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        if kind != "mha":
            return None
        from sglang_respec.upstream.portable.kv_pool import PortableMHATokenToKVPool

        return PortableMHATokenToKVPool

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Fills in what the user left open.

        SGLang has by then defaulted a CPU to `intel_amx`, whose kernels belong to its in-tree
        CPU engine and are not there on this platform, so that value counts as open too.
        """
        config = load_config()
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = PORTABLE_BACKEND_NAME
        # An idle scheduler polls: on a GPU node that is one core of many, here it is half.
        server_args.sleep_on_idle = True
        if server_args.max_total_tokens is None:
            server_args.max_total_tokens = config.portable_kv_tokens

    def init_backend(self) -> None:
        """Threads are set in `post_load_model`, when the parallel layout is known."""

    def post_load_model(self, model: Any) -> None:
        from sglang.srt.runtime_context import get_parallel

        cores = len(os.sched_getaffinity(0))
        threads = load_config().portable_threads or cores // get_parallel().tp_size
        torch.set_num_threads(max(1, threads))
        keep_freed_memory()  # not before: what loading took and freed goes back
