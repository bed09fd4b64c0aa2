"""What SGLang's two plugin groups call, once in every process that loads plugins."""

import os
import sys

from sglang_respec.config import enabled
from sglang_respec.errors import RespecError

PLATFORM = "sglang_respec.upstream.portable.platform.PortablePlatform"


def platform() -> str | None:
    """Entry point of `sglang.srt.platforms`: the portable platform where there is no GPU."""
    if not needs_portable():
        return None
    # SGLang decorates small helpers with torch.compile; compiling them on a CPU costs tens
    # of seconds at the first requests and gains nothing. Read when torch._dynamo loads.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Torch's threads spin between operations; beside anything else that runs on the machine
    # this costs most of the speed. Read when torch loads, so for spawned processes only:
    # `respec serve` sets it before it loads torch itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return PLATFORM


def register() -> None:
    """Entry point of `sglang.srt.plugins`: enter every hook, or stop the process.

    SGLang would log an exception raised here and serve without us, so this exits.
    """
    from sglang_respec.upstream.activation import install_hooks

    try:
        portable = needs_portable()
        if portable:
            from sglang_respec.upstream.portable.registration import register_backend

            register_backend()
        install_hooks(enabled=enabled(), portable=portable)
    except RespecError as error:
        sys.exit(f"respec: {error}")


def needs_portable() -> bool:
    """No accelerator that SGLang knows is here, and its own CPU engine is not asked for."""
    import torch

    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return False
    if torch.cuda.is_available() or torch.xpu.is_available():
        return False
    npu = getattr(torch, "npu", None)
    mps = getattr(torch, "mps", None)
    return not ((npu and npu.is_available()) or (mps and mps.is_available()))
