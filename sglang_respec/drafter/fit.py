"""Whether a drafter fits a target, told before anything is loaded.

SGLang finds these mistakes minutes later, in a spawned process, as a shape error inside a matrix
product, or never: a drafter of another tokenizer runs, and nothing it drafts is accepted. What
SGLang 0.5.23 can serve is not refused, with one exception: pickle files are never opened.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_respec.drafter.checkpoint import (
    TensorEntry,
    is_hub_id,
    read_config,
    read_integers,
    read_tensors,
)
from sglang_respec.errors import RespecError

DEFAULT_AUX_LAYERS = 3

# Where a multimodal or wrapped target keeps the configuration of its language model.
_NESTED_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
# Targets whose last layer's output SGLang does not capture; others are given the benefit of doubt.
_LAST_OUTPUT_NOT_CAPTURED = {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_FLOAT_TYPES = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class _Target:
    """What the drafter has to agree with; None where the target's config does not say."""

    architecture: str
    hidden_size: int | None
    vocab_size: int | None
    num_layers: int | None


def check_drafter_fits(target: str | os.PathLike[str], drafter: str | os.PathLike[str]) -> None:
    """Raise :class:`RespecError`, one sentence with its remedy, when ``drafter`` cannot serve.

    Both are what the user passes as a model path. A hub name is skipped, since nothing of it can
    be read without a download: a target on a hub leaves the checks of the drafter alone.
    """
    if is_hub_id(os.fspath(drafter)):
        return
    drafter_dir = Path(drafter).expanduser()
    config = read_config(drafter_dir, "drafter")
    _check_architecture(drafter_dir, config)
    tensors = read_tensors(drafter_dir, "drafter")
    _check_own_shapes(drafter_dir, config, tensors)
    if is_hub_id(os.fspath(target)):
        return
    facts = _read_target(Path(target).expanduser())
    _check_hidden_size(config, facts)
    _check_vocabulary(config, tensors, facts)
    _check_aux_layers(config, facts)


def _read_target(directory: Path) -> _Target:
    config = read_config(directory, "target")
    text = _language_config(config)
    return _Target(
        architecture=next(iter(_architectures(config)), ""),
        hidden_size=_integer(text, "hidden_size"),
        vocab_size=_integer(text, "vocab_size"),
        num_layers=_integer(text, "num_hidden_layers"),
    )


def _language_config(config: dict[str, Any]) -> dict[str, Any]:
    if "hidden_size" in config:
        return config
    nested = (config[key] for key in _NESTED_CONFIGS if isinstance(config.get(key), dict))
    return next((_language_config(each) for each in nested), config)


def _architectures(config: dict[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _integer(config: dict[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if type(value) is int and value > 0 else None


def _required(config: dict[str, Any], name: str) -> int:
    value = _integer(config, name)
    if value is None:
        raise RespecError(
            f"The drafter's config.json has no valid {name} (found {config.get(name)!r}); "
            "add it as a positive integer."
        )
    return value


def _check_architecture(directory: Path, config: dict[str, Any]) -> None:
    names = _architectures(config)
    if not any("eagle3" in name.lower() for name in names):
        raise RespecError(
            f"The drafter {directory} is not an EAGLE-3 drafter (architectures: "
            f"{', '.join(names) or 'none'}); give one whose config.json names an EAGLE-3 "
            "architecture such as LlamaForCausalLMEagle3, or serve it with `sglang serve` and "
            "its own algorithm."
        )


def _eagle_config(config: dict[str, Any]) -> dict[str, Any]:
    value = config.get("eagle_config")
    return value if isinstance(value, dict) else {}


def _uses_aux(config: dict[str, Any]) -> bool:
    return bool(_eagle_config(config).get("use_aux_hidden_state", True))


def _aux_layer_ids(config: dict[str, Any]) -> list[int] | None:
    """The layers the target will be asked for; None when SGLang's default applies."""
    ids = _eagle_config(config).get("eagle_aux_hidden_state_layer_ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not ids or any(type(each) is not int for each in ids):
        raise RespecError(
            f"eagle_aux_hidden_state_layer_ids in the drafter's config.json must be a list of "
            f"layer numbers, found {ids!r}; correct it or remove it."
        )
    return ids


def _num_aux(config: dict[str, Any]) -> int:
    """How many target layers the drafter's ``fc`` expects, resolved as SGLang does."""
    if config.get("num_aux_hidden_states") is not None:
        return _required(config, "num_aux_hidden_states")
    ids = _aux_layer_ids(config)
    return len(ids) if ids else DEFAULT_AUX_LAYERS


def _width_in(config: dict[str, Any]) -> int:
    """Width of the target's hidden states as the drafter expects them."""
    return _integer(config, "target_hidden_size") or _required(config, "hidden_size")


def _find(tensors: dict[str, TensorEntry], name: str) -> TensorEntry | None:
    return tensors.get(name) or tensors.get(f"model.{name}")


def _check_own_shapes(
    directory: Path, config: dict[str, Any], tensors: dict[str, TensorEntry]
) -> None:
    """The drafter's weights agree with its own config."""
    hidden = _required(config, "hidden_size")
    vocab = _required(config, "vocab_size")
    draft_vocab = _integer(config, "draft_vocab_size")
    if _uses_aux(config):
        fc = _find(tensors, "fc.weight")
        if fc is None:
            raise RespecError(
                f"The drafter {directory} has no fc.weight, the projection of the target's hidden "
                "states; export it again with all its weights."
            )
        wanted = (hidden, _num_aux(config) * _width_in(config))
        # A quantized fc is stored packed; its shape says nothing.
        if fc.dtype in _FLOAT_TYPES and fc.shape != wanted:
            raise RespecError(
                f"The drafter's fc.weight is {list(fc.shape)} but its config.json asks for "
                f"{list(wanted)} (hidden size x {_num_aux(config)} target layers of width "
                f"{_width_in(config)}); correct target_hidden_size or the number of auxiliary "
                "layers in config.json."
            )
    if _width_in(config) != hidden and _find(tensors, "embed_tokens.weight") is None:
        raise RespecError(
            f"The drafter {directory} is {hidden} wide and the target {_width_in(config)}, so it "
            "needs an embedding of its own and has none; export it with embed_tokens.weight."
        )
    head = tensors.get("lm_head.weight")
    rows = draft_vocab or vocab
    if head is not None and head.dtype in _FLOAT_TYPES and head.shape[:1] != (rows,):
        raise RespecError(
            f"The drafter's lm_head.weight has {head.shape[0]} rows but its vocabulary is {rows}; "
            "correct draft_vocab_size in its config.json."
        )
    if draft_vocab is not None and head is None and not config.get("tie_word_embeddings"):
        raise RespecError(
            f"The drafter {directory} has a draft_vocab_size but no lm_head.weight; export its "
            "output layer, or remove draft_vocab_size to use the target's."
        )


def _check_hidden_size(config: dict[str, Any], target: _Target) -> None:
    if target.hidden_size is not None and _width_in(config) != target.hidden_size:
        name = "target_hidden_size" if config.get("target_hidden_size") else "hidden_size"
        raise RespecError(
            f"The drafter was made for hidden states of width {_width_in(config)} ({name}) and "
            f"the target's are {target.hidden_size} wide; use a drafter trained for this target."
        )


def _check_vocabulary(
    config: dict[str, Any], tensors: dict[str, TensorEntry], target: _Target
) -> None:
    vocab = _required(config, "vocab_size")
    if target.vocab_size is not None and vocab != target.vocab_size:
        raise RespecError(
            f"The drafter's vocabulary has {vocab} tokens and the target's {target.vocab_size}; "
            "use a drafter trained with this target's tokenizer."
        )
    draft_vocab = _integer(config, "draft_vocab_size") or vocab
    d2t = next((entry for name, entry in tensors.items() if "d2t" in name), None)
    if d2t is None:
        if draft_vocab != vocab:
            raise RespecError(
                f"The drafter proposes {draft_vocab} of {vocab} tokens but has no d2t map to say "
                "which; export it with d2t."
            )
        return
    offsets = read_integers(d2t)
    if len(offsets) != draft_vocab:
        raise RespecError(
            f"The drafter's d2t map has {len(offsets)} entries for a draft vocabulary of "
            f"{draft_vocab}; correct draft_vocab_size or export d2t again."
        )
    for draft_id, offset in enumerate(offsets):
        if not 0 <= draft_id + offset < vocab:
            raise RespecError(
                f"The drafter's d2t map sends draft token {draft_id} to {draft_id + offset}, "
                f"outside the target's {vocab} tokens; d2t holds differences (target id - draft "
                "id), so export it again."
            )


def _check_aux_layers(config: dict[str, Any], target: _Target) -> None:
    if not _uses_aux(config):
        return
    ids = _aux_layer_ids(config)
    layers = target.num_layers
    if ids is None:
        if layers is not None:
            default = [2, layers // 2, layers - 3]
            if len(set(default)) != DEFAULT_AUX_LAYERS or layers < 3:
                raise RespecError(
                    f"A target of {layers} layers is too small for SGLang's default auxiliary "
                    f"layers {default}, which must differ; use 7 or more layers or name distinct "
                    "ones in eagle_config.eagle_aux_hidden_state_layer_ids."
                )
        captured = DEFAULT_AUX_LAYERS
    else:
        if len(set(ids)) != len(ids):
            raise RespecError(
                f"The drafter's auxiliary layers {ids} repeat; each must be named once."
            )
        captured = len(ids)
        if layers is not None:
            last = layers - 2 if target.architecture in _LAST_OUTPUT_NOT_CAPTURED else layers
            wrong = [each for each in ids if not -1 <= each <= last]
            if wrong:
                raise RespecError(
                    f"The drafter asks for auxiliary layers {wrong} of a target with {layers} "
                    f"layers; name layers from 0 to {last} in "
                    "eagle_config.eagle_aux_hidden_state_layer_ids."
                )
    if _num_aux(config) != captured:
        raise RespecError(
            f"The drafter expects {_num_aux(config)} auxiliary layers (num_aux_hidden_states) and "
            f"the target will give {captured}; name as many in "
            "eagle_config.eagle_aux_hidden_state_layer_ids."
        )
