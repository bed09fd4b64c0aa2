"""Builds tiny models with random weights, and writes what Hugging Face's own code decodes.

`python sliding_model.py FOLDER` makes a folder per model in FOLDER and the tokens expected of
each in FOLDER/expected.json: of the model as it is, and of its weights without one feature.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MellumConfig,
    MellumForCausalLM,
    PreTrainedModel,
)

from respec_server.bundled import demo_models

VOCABULARY, WINDOW, TOKENS = 512, 16, 24
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "dtype": "float32",
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": 2,
}


def gemma(**changes: Any) -> PreTrainedModel:
    """Windows, and caps on scores and logits. SGLang keeps all its keys in one pool."""
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0}
    activation = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    config = {**COMMON, **caps, **activation, "query_pre_attn_scalar": 16, **changes}
    model = Gemma2ForCausalLM(Gemma2Config(**config))
    # What the layers add must outweigh the token itself, which else repeats for ever.
    for layer in model.model.layers:
        layer.post_attention_layernorm.weight.data.fill_(20.0)
        layer.post_feedforward_layernorm.weight.data.fill_(20.0)
    return model


def mellum(**changes: Any) -> PreTrainedModel:
    """Windows. SGLang keeps the keys of its sliding layers in a pool of their own."""
    config = {**COMMON, "mlp_layer_types": ["dense"] * 4, "tie_word_embeddings": False, **changes}
    return MellumForCausalLM(MellumConfig(**config))


MODELS: dict[str, tuple[Callable[..., PreTrainedModel], dict[str, dict[str, Any]]]] = {
    "gemma": (
        gemma,
        {
            "without a window": {"sliding_window": 4096},
            "without a cap": {"attn_logit_softcapping": None},
        },
    ),
    "mellum": (mellum, {"without a window": {"sliding_window": 4096}}),
}


def prompts() -> list[list[int]]:
    """Shorter than the window (its continuation is not), longer, much longer."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(5, VOCABULARY, (length,), generator=generator).tolist()
        for length in (6, 50, 130)
    ]


def seeded(make: Callable[..., PreTrainedModel], **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return make(**changes).eval()


def decode(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    row = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0]
    return row[len(prompt) :].tolist()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    expected: dict[str, dict[str, list[list[int]]]] = {}
    for name, (make, features) in MODELS.items():
        seeded(make).save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo_models()[0] / file, folder / name)
        variants = {"as it is": {}, **features}
        expected[name] = {
            variant: [decode(seeded(make, **changes), prompt) for prompt in prompts()]
            for variant, changes in variants.items()
        }
    found = {"prompts": prompts(), "expected": expected}
    (folder / "expected.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
