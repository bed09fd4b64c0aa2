"""Drafter checkpoints in the layout that SpecForge writes and SGLang reads.

``model.safetensors`` holds ``midlayer.*``, ``fc.weight``, ``norm.weight``, ``lm_head.weight``,
``d2t`` and ``t2d``; ``config.json`` names ``LlamaForCausalLMEagle3``. The embedding is the
target's and is not stored. Files written elsewhere may say ``layers.0.`` for ``midlayer.`` and
prefix names with ``model.``; both are understood.
"""

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sglang_respec.learner.eagle3 import DrafterConfig, Eagle3Drafter

ARCHITECTURE = "LlamaForCausalLMEagle3"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
# Variants that SGLang can serve and this module does not train.
_UNTRAINED_OPTIONS = ("norm_before_fc", "fc_norm", "use_aux_norm", "norm_output", "bias")


def save_drafter(
    drafter: Eagle3Drafter, directory: Path, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write weights, then the configuration; each file appears whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{WEIGHTS_FILE}.partial"
    save_file(drafter_tensors(drafter, dtype), partial, metadata={"format": "pt"})
    partial.replace(directory / WEIGHTS_FILE)
    text = json.dumps(config_to_json(drafter.config, dtype), indent=2) + "\n"
    partial = directory / f"{CONFIG_FILE}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(directory / CONFIG_FILE)


def load_drafter(
    directory: Path | str,
    embed_tokens: Tensor,  # [V, H] of the target
    dtype: torch.dtype = torch.float32,
) -> Eagle3Drafter:
    directory = Path(directory)
    config = read_drafter_config(directory)
    tensors = canonical_names(load_file(directory / WEIGHTS_FILE))
    draft_ids = _draft_ids(tensors, config)
    drafter = Eagle3Drafter(config, embed_tokens.to(dtype), draft_ids).to(dtype)
    tensors["d2t"], tensors["t2d"] = drafter.d2t, drafter.t2d
    _check_names(tensors, drafter, directory)
    drafter.load_state_dict(tensors)
    return drafter


def drafter_tensors(
    drafter: Eagle3Drafter, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """The checkpoint's tensors: what a file holds and what a push to a server sends."""
    return {
        name: (tensor.detach().to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in drafter.state_dict().items()
    }


def canonical_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other writers' names turned into ours; a stored copy of the embedding is dropped."""
    renamed = {
        name.removeprefix("model.").replace("layers.0.", "midlayer."): tensor
        for name, tensor in tensors.items()
    }
    renamed.pop("embed_tokens.weight", None)
    return renamed


def config_to_json(config: DrafterConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The ``config.json`` of a drafter.

    ``eagle_config`` is left out on purpose: SGLang then captures its default layers
    ``[2, n//2, n-3]``, while an explicit list ``ids`` would be read as layers ``id + 1``.
    """
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **asdict(config),
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def read_drafter_config(directory: Path) -> DrafterConfig:
    raw: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    _refuse_what_we_cannot_train(raw)
    raw.setdefault("target_hidden_size", raw["hidden_size"])
    raw.setdefault("head_dim", raw["hidden_size"] // raw["num_attention_heads"])
    raw.setdefault("num_key_value_heads", raw["num_attention_heads"])
    raw["draft_vocab_size"] = raw.get("draft_vocab_size") or raw["vocab_size"]
    rope = raw.get("rope_parameters") or {}
    raw["rope_theta"] = raw.get("rope_theta") or rope.get("rope_theta", 10000.0)
    layers = (raw.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    if layers:
        raw.setdefault("num_aux_hidden_states", len(layers))
    names = {field.name for field in fields(DrafterConfig)}
    return DrafterConfig(**{name: value for name, value in raw.items() if name in names})


def _refuse_what_we_cannot_train(raw: dict[str, Any]) -> None:
    if raw.get("architectures") != [ARCHITECTURE] or raw.get("num_hidden_layers", 1) != 1:
        raise ValueError(
            f"this is {raw.get('architectures')} with {raw.get('num_hidden_layers')} layers; the "
            f"learner trains one-layer {ARCHITECTURE} drafters"
        )
    options = {**raw, **(raw.get("eagle_config") or {})}
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    unsupported = [name for name in _UNTRAINED_OPTIONS if options.get(name)]
    if scaling.get("rope_type", "default") != "default":
        unsupported.append("rope_scaling")
    if unsupported:
        raise ValueError(
            f"the drafter uses {', '.join(unsupported)}, which the learner does not implement; "
            "serve it as it is, or train one without"
        )


def _draft_ids(tensors: dict[str, Tensor], config: DrafterConfig) -> Tensor:
    ids = torch.arange(config.draft_vocab_size)
    return ids + tensors["d2t"].long() if "d2t" in tensors else ids


def _check_names(tensors: dict[str, Tensor], drafter: Eagle3Drafter, directory: Path) -> None:
    expected = drafter.state_dict()
    missing, extra = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
    if missing or extra:
        raise ValueError(
            f"{os.fspath(directory)}: missing {missing}, unknown {extra}; an EAGLE-3 checkpoint "
            "of SpecForge's layout is expected"
        )
    wrong = [name for name in expected if tensors[name].shape != expected[name].shape]
    if wrong:
        shapes = {name: (tuple(tensors[name].shape), tuple(expected[name].shape)) for name in wrong}
        raise ValueError(
            f"{os.fspath(directory)}: shapes (found, config.json says) {shapes}; the weights and "
            "config.json belong to different drafters"
        )
