"""The target's embedding and output layer, read from its checkpoint without the rest of it."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sglang_respec.errors import RespecError

INDEX_FILE, WEIGHTS_FILE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class TargetTables:
    embed_tokens: Tensor  # [V, H]
    lm_head: Tensor  # [V, H]; the embedding itself where the target ties them


def read_target_tables(directory: Path | str) -> TargetTables:
    """Read both tables of a Hugging Face checkpoint in safetensors.

    Raises `RespecError` where there is none, or no embedding in it.
    """
    directory = Path(directory).expanduser()
    files = _files_of(directory)
    embedding = _find(files, "embed_tokens.weight")
    if embedding is None:
        raise RespecError(
            f"The target {directory} has no tensor named ...embed_tokens.weight; give the folder "
            "of a Hugging Face checkpoint."
        )
    lm_head = _find(files, "lm_head.weight")
    return TargetTables(embedding, embedding if lm_head is None else lm_head)


def _files_of(directory: Path) -> dict[str, Path]:
    """The file of every tensor."""
    try:
        if (directory / INDEX_FILE).exists():
            index = json.loads((directory / INDEX_FILE).read_text(encoding="utf-8"))
            return {name: directory / file for name, file in index["weight_map"].items()}
        with safe_open(directory / WEIGHTS_FILE, "pt") as file:
            return dict.fromkeys(file.keys(), directory / WEIGHTS_FILE)
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise RespecError(
            f"The target {directory} cannot be read ({error}); give a local folder with "
            f"{WEIGHTS_FILE}, or with shards and {INDEX_FILE}."
        ) from error


def _find(files: dict[str, Path], ending: str) -> Tensor | None:
    names = [name for name in files if name == ending or name.endswith("." + ending)]
    if len(names) > 1:
        raise RespecError(f"The target has several tensors named ...{ending}: {sorted(names)}.")
    if not names:
        return None
    try:
        with safe_open(files[names[0]], "pt") as file:
            tensor: Tensor = file.get_tensor(names[0])
    except (OSError, SafetensorError) as error:
        raise RespecError(f"{files[names[0]]} cannot be read ({error}).") from error
    return tensor
