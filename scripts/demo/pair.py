"""Shapes of the demo pair, and how its files reach the package."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from demo.tokenizer import END_OF_TEXT, MAX_POSITIONS, TURN_END, VOCAB_SIZE
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from sglang_respec.learner.eagle3 import DrafterConfig, Eagle3Drafter

DEMO_MODELS = Path(__file__).resolve().parents[2] / "sglang_respec" / "demo_models"
DRAFT_VOCAB_SIZE = 256
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64  # two of each: tensor parallel 2; GPU kernels know 64
HIDDEN, INTERMEDIATE, LAYERS = 192, 512, 8
# SGLang's default capture: the residual stream before these layers.
AUX_LAYERS = (2, LAYERS // 2, LAYERS - 3)


def new_target(tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(TURN_END),
        pad_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
    )
    return Qwen2ForCausalLM(config)


def new_drafter(target: Qwen2ForCausalLM, draft_ids: torch.Tensor) -> Eagle3Drafter:
    config = DrafterConfig(
        vocab_size=VOCAB_SIZE,
        draft_vocab_size=len(draft_ids),
        hidden_size=HIDDEN,
        target_hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
    )
    return Eagle3Drafter(config, target.get_input_embeddings().weight, draft_ids)


def save_target(target: Qwen2ForCausalLM, directory: Path) -> None:
    """Hugging Face layout in bfloat16; the tied output head is not stored twice."""
    tensors = {
        name: tensor.detach().to(torch.bfloat16).contiguous()
        for name, tensor in target.state_dict().items()
        if name != "lm_head.weight"
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    target.config.architectures = ["Qwen2ForCausalLM"]
    target.config.dtype = "bfloat16"
    target.config.save_pretrained(directory)
    generation = {
        "do_sample": True,
        "temperature": 1.0,
        "eos_token_id": target.config.eos_token_id,
        "pad_token_id": target.config.pad_token_id,
    }
    text = json.dumps(generation, indent=2) + "\n"
    (directory / "generation_config.json").write_text(text, encoding="utf-8")


@contextmanager
def published_to(final: Path) -> Iterator[Path]:
    """Yields an empty directory whose files replace those of ``final`` one by one at the end.

    A server that is loading keeps the old file it has open; none ever sees half a file.
    """
    final.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=".building-") as name:
        yield Path(name)
        for path in sorted(Path(name).iterdir()):
            path.chmod(0o644)
            path.replace(final / path.name)
