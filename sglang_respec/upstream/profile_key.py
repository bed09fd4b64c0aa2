"""What step times depend on, as one key: a profile serves only where all of it is equal."""

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sglang_respec.planner import ProfileKey

PACKAGES = ("sglang", "sglang-respec", "torch")


def profile_key(worker: Any) -> ProfileKey:
    """The key of a worker whose models are loaded and whose attention backends are chosen."""
    target, drafter = worker.target_worker.model_runner, worker.draft_worker.draft_runner
    args = worker.server_args
    return ProfileKey(
        target=_model(target.model_config),
        drafter=_model(drafter.model_config),
        device=_device(worker.device),
        parallelism=f"tp={args.tp_size}",
        dtype=f"{_dtype(target.dtype)}, KV {args.kv_cache_dtype}, weights {args.quantization}",
        versions=tuple((name, _version(name)) for name in sorted(PACKAGES)),
        execution=(
            f"attention {_backend(target)}, of the drafter {_backend(drafter)}, "
            f"page {target.page_size}, graphs {_graphs(target)}"
        ),
    )


def _model(config: Any) -> str:
    """Name and architecture: times do not depend on the weights, nor on where they lie."""
    values = config.hf_config.to_dict()
    for name in ("_name_or_path", "transformers_version", "name_or_path"):
        values.pop(name, None)
    text = json.dumps(values, sort_keys=True, default=str)
    name = Path(str(config.model_path)).name
    return f"{name} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _device(device: Any) -> str:
    if str(device).startswith("cuda"):
        return str(torch.cuda.get_device_name())
    return f"{device}, {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (each.partition(":")[2].strip() for each in lines if each.startswith("model name"))
    return next(names, platform.machine())


def _dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _backend(runner: Any) -> str:
    return type(runner.attn_backend).__name__


def _graphs(runner: Any) -> str:
    if runner.decode_cuda_graph_runner is None:
        return "off"
    return f"up to {max(runner.decode_cuda_graph_capture_bs, default=0)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"
