"""The bundled demo models: where they are and how they are served."""

from __future__ import annotations

from pathlib import Path

import sglang_respec
from respec_server.device import cuda_devices
from sglang_respec.errors import RespecError


def demo_models() -> tuple[Path, Path]:
    """The bundled target and drafter."""
    folder = Path(sglang_respec.__file__).parent / "demo_models"
    target, drafter = folder / "target", folder / "drafter"
    for each in (target, drafter):
        if not (each / "config.json").is_file():
            raise RespecError(
                f"The bundled model {each.name} is not in this installation; "
                "run `make models` in the repository to build it."
            )
    return target, drafter


def demo_flags() -> list[str]:
    """SGLang's flags for the bundled target: on a CPU in float32, where bfloat16 is slow."""
    target, _ = demo_models()
    flags = ["--model-path", str(target), "--host", "127.0.0.1", "--port", "30000"]
    if cuda_devices()[0] == 0:
        flags += ["--device", "cpu", "--dtype", "float32"]
    return flags
