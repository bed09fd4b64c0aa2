"""Drafter checkpoints in the layout that SpecForge writes and SGLang reads.

``model.safetensors`` holds ``midlayer.*``, ``fc.weight``, ``norm.weight``, ``lm_head.weight``,
``d2t`` and ``t2d``; ``config.json`` names ``LlamaForCausalLMEagle3``. The embedding is the
target's and is not stored. Files written elsewhere may say ``layers.0.`` for ``midlayer.`` and
prefix names with ``model.``; both are understood. So is the layout of ``speculators``, whose
``config.json`` nests the layer's sizes under ``transformer_layer_config`` and whose file carries
copies of the target's embedding and output layer.
"""

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sglang_respec.errors import RespecError
from sglang_respec.learner.eagle3 import DrafterConfig, Eagle3Drafter

ARCHITECTURE = "LlamaForCausalLMEagle3"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
# Variants that SGLang can serve and this module does not train.
_UNTRAINED_OPTIONS = (
    "norm_before_fc", "fc_norm", "use_aux_norm", "norm_output", "bias", "norm_before_residual",
)  # fmt: skip
_REQUIRED_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
    "max_position_embeddings",
)  # fmt: skip


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
    lm_head: Tensor | None = None,  # [V, H] of the target, for drafters that use it as their own
) -> Eagle3Drafter:
    """Raises `RespecError` for what is not a drafter that this module can train."""
    directory = Path(directory).expanduser()
    config = read_drafter_config(directory)
    tensors = canonical_names(_read_tensors(directory / WEIGHTS_FILE))
    if lm_head is not None and config.draft_vocab_size == config.vocab_size:
        tensors.setdefault("lm_head.weight", lm_head)
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
    """Other writers' names turned into ours; copies of what is the target's are dropped."""
    renamed = {
        name.removeprefix("model.").replace("layers.0.", "midlayer."): tensor
        for name, tensor in tensors.items()
    }
    return {
        name: tensor
        for name, tensor in renamed.items()
        if name != "embed_tokens.weight" and not name.startswith("verifier_")
    }


def config_to_json(config: DrafterConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The ``config.json`` of a drafter.

    Without ``aux_layer_ids``, SGLang captures its default layers ``[2, n//2, n-3]``, while an
    explicit list ``ids`` is read as layers ``id + 1``.
    """
    sizes = asdict(config)
    layers = sizes.pop("aux_layer_ids")
    explicit = {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": layers}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **sizes,
        **({"eagle_config": explicit} if layers else {}),
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def read_drafter_config(directory: Path) -> DrafterConfig:
    """The sizes of a drafter, from SpecForge's or speculators' ``config.json``."""
    raw = _read_json(directory / CONFIG_FILE)
    if "speculators_model_type" in raw:
        raw = _from_speculators(raw)
    _refuse_what_we_cannot_train(raw)
    lacking = [name for name in _REQUIRED_SIZES if not raw.get(name)]
    if lacking:
        raise RespecError(
            f"{directory / CONFIG_FILE} lacks {', '.join(lacking)}; export the drafter again."
        )
    raw["target_hidden_size"] = raw.get("target_hidden_size") or raw["hidden_size"]
    raw["head_dim"] = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    raw.setdefault("num_key_value_heads", raw["num_attention_heads"])
    raw["draft_vocab_size"] = raw.get("draft_vocab_size") or raw["vocab_size"]
    rope = raw.get("rope_parameters") or {}
    raw["rope_theta"] = raw.get("rope_theta") or rope.get("rope_theta", 10000.0)
    layers = (raw.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    if layers:
        raw.setdefault("num_aux_hidden_states", len(layers))
        raw["aux_layer_ids"] = tuple(layers)
    names = {field.name for field in fields(DrafterConfig)}
    return DrafterConfig(**{name: value for name, value in raw.items() if name in names})


def _from_speculators(raw: dict[str, Any]) -> dict[str, Any]:
    """SGLang's configuration of a drafter that ``speculators`` wrote.

    Its layer ``j`` is the residual stream before layer ``j``, as in vLLM, which SGLang calls
    layer ``j - 1``.
    """
    if raw["speculators_model_type"] != "eagle3":
        raise RespecError(
            f"this is a speculators drafter of type {raw['speculators_model_type']!r}; the learner "
            "trains eagle3"
        )
    layer = raw.get("transformer_layer_config") or {}
    if layer.get("model_type", "llama") != "llama":
        raise RespecError(
            f"the drafter's layer is a {layer['model_type']} layer; the learner trains llama ones"
        )
    layers = raw.get("eagle_aux_hidden_state_layer_ids")
    return {
        # Sizes that speculators leaves to transformers' LlamaConfig, whose defaults these are.
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        **layer,
        "architectures": [ARCHITECTURE],
        "draft_vocab_size": raw.get("draft_vocab_size"),
        "target_hidden_size": raw.get("target_hidden_size"),
        "norm_before_residual": raw.get("norm_before_residual"),
        **(
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [j - 1 for j in layers]}}
            if layers
            else {}
        ),
    }


def _refuse_what_we_cannot_train(raw: dict[str, Any]) -> None:
    if raw.get("architectures") != [ARCHITECTURE] or raw.get("num_hidden_layers", 1) != 1:
        raise RespecError(
            f"this is {raw.get('architectures')} with {raw.get('num_hidden_layers')} layers; the "
            f"learner trains one-layer {ARCHITECTURE} drafters"
        )
    options = {**raw, **(raw.get("eagle_config") or {})}
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    unsupported = [name for name in _UNTRAINED_OPTIONS if options.get(name)]
    if scaling.get("rope_type", "default") != "default":
        unsupported.append("rope_scaling")
    if unsupported:
        raise RespecError(
            f"the drafter uses {', '.join(unsupported)}, which the learner does not implement; "
            "serve it as it is, or train one without"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RespecError(f"{path} cannot be read ({error}); give a drafter's folder.") from error
    if not isinstance(found, dict):
        raise RespecError(f"{path} is not a table of settings; give a drafter's folder.")
    return found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RespecError(f"{path} cannot be read ({error}); give a drafter's folder.") from error
    return tensors


def _draft_ids(tensors: dict[str, Tensor], config: DrafterConfig) -> Tensor:
    ids = torch.arange(config.draft_vocab_size)
    return ids + tensors["d2t"].long() if "d2t" in tensors else ids


def _check_names(tensors: dict[str, Tensor], drafter: Eagle3Drafter, directory: Path) -> None:
    expected = drafter.state_dict()
    missing, extra = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
    if missing or extra:
        raise RespecError(
            f"{os.fspath(directory)}: missing {missing}, unknown {extra}; an EAGLE-3 checkpoint "
            "of SpecForge's layout is expected"
        )
    wrong = [name for name in expected if tensors[name].shape != expected[name].shape]
    if wrong:
        shapes = {name: (tuple(tensors[name].shape), tuple(expected[name].shape)) for name in wrong}
        raise RespecError(
            f"{os.fspath(directory)}: shapes (found, config.json says) {shapes}; the weights and "
            "config.json belong to different drafters"
        )
