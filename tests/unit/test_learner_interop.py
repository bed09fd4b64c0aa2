"""Drafters from elsewhere load here with the same arithmetic, and ours say what they need."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from learner_toys import CONFIG, EMBEDDING, HIDDEN, VOCAB, make_drafter, markov_rollout
from safetensors.torch import load_file, save_file

from sglang_respec.drafter.fit import check_drafter_fits
from sglang_respec.errors import RespecError
from sglang_respec.learner.checkpoint import load_drafter, save_drafter
from sglang_respec.learner.eagle3 import Eagle3Drafter
from sglang_respec.learner.target import read_target_tables


def to_speculators(folder: Path, drafter: Eagle3Drafter, **changes: object) -> None:
    """A checkpoint as speculators 0.9 writes it: Eagle3SpeculatorConfig and its state dict."""
    save_drafter(drafter, folder, torch.float32)
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.replace("midlayer.", "layers.0."): each for name, each in tensors.items()}
    renamed["embed_tokens.weight"] = EMBEDDING
    renamed["verifier_lm_head.weight"] = torch.zeros(CONFIG.draft_vocab_size, HIDDEN)
    save_file(renamed, folder / "model.safetensors")
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "target"}},
        "transformer_layer_config": {
            "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN,
            "intermediate_size": 12, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 6, "num_hidden_layers": 1, "max_position_embeddings": 256,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "draft_vocab_size": CONFIG.draft_vocab_size,
        "norm_before_residual": False,
        "target_hidden_size": None,
        "eagle_aux_hidden_state_layer_ids": [3, 5, 8],
        **changes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def same_guesses(left: Eagle3Drafter, right: Eagle3Drafter) -> None:
    sample = markov_rollout(1)
    tokens = sample.tokens[None, :-1].long()
    for a, b in zip(
        left.unroll(sample.aux[None], tokens, 3), right.unroll(sample.aux[None], tokens, 3),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(a, b)
    assert torch.equal(left.draft_ids, right.draft_ids)


def test_a_speculators_drafter_trains_here_and_serves_as_ours(tmp_path: Path) -> None:
    drafter = make_drafter()
    to_speculators(tmp_path, drafter)
    loaded = load_drafter(tmp_path, EMBEDDING)
    same_guesses(drafter, loaded)
    # speculators' layer j is the residual stream before layer j, SGLang's id j - 1.
    assert loaded.config == replace(CONFIG, aux_layer_ids=(2, 4, 7))
    save_drafter(loaded, tmp_path / "ours", torch.float32)
    config = json.loads((tmp_path / "ours/config.json").read_text())
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [2, 4, 7]
    same_guesses(drafter, load_drafter(tmp_path / "ours", EMBEDDING))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_before_residual": True}, "norm_before_residual"),
        ({"speculators_model_type": "dflash"}, "dflash"),
        ({"transformer_layer_config": {"model_type": "qwen3"}}, "qwen3"),
        ({"transformer_layer_config": {"hidden_size": 8, "num_attention_heads": 4}}, "lacks"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, changes: dict, words: str) -> None:
    to_speculators(tmp_path, make_drafter(), **changes)
    with pytest.raises(RespecError, match=words):
        load_drafter(tmp_path, EMBEDDING)


def test_a_specforge_drafter_with_explicit_layers_keeps_them(tmp_path: Path) -> None:
    drafter = make_drafter()
    save_drafter(drafter, tmp_path, torch.float32)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    for name in ("target_hidden_size", "num_aux_hidden_states", "head_dim"):
        del raw[name]
    raw["head_dim"] = 6
    raw["eagle_config"] = {
        "eagle_aux_hidden_state_layer_ids": [1, 9, 17], "use_aux_hidden_state": True,
    }  # fmt: skip
    path.write_text(json.dumps(raw))
    loaded = load_drafter(tmp_path, EMBEDDING)
    same_guesses(drafter, loaded)
    assert loaded.config.aux_layer_ids == (1, 9, 17)


def test_ours_fit_a_target_by_the_server_s_own_check(tmp_path: Path) -> None:
    save_drafter(make_drafter(), tmp_path / "drafter")
    (tmp_path / "target").mkdir()
    target = {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": HIDDEN, "vocab_size": VOCAB,
        "num_hidden_layers": 8,
    }  # fmt: skip
    (tmp_path / "target/config.json").write_text(json.dumps(target))
    check_drafter_fits(tmp_path / "target", tmp_path / "drafter")


def test_a_drafter_without_a_head_takes_the_target_s(tmp_path: Path) -> None:
    drafter = make_drafter(draft_ids=torch.arange(VOCAB))
    save_drafter(drafter, tmp_path, torch.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors.pop("lm_head.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    same_guesses(drafter, load_drafter(tmp_path, EMBEDDING, lm_head=head))
    with pytest.raises(RespecError, match=r"lm_head\.weight"):
        load_drafter(tmp_path, EMBEDDING)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_the_target_s_tables_are_found(tmp_path: Path, tied: bool, sharded: bool) -> None:
    embedding, head = torch.randn(5, 2), torch.randn(5, 2)
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(2)}
    if not tied:
        tensors["lm_head.weight"] = head
    if sharded:
        files = {name: f"shard-{i}.safetensors" for i, name in enumerate(tensors)}
        for name, file in files.items():
            save_file({name: tensors[name]}, tmp_path / file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    found = read_target_tables(tmp_path)
    assert torch.equal(found.embed_tokens, embedding)
    assert torch.equal(found.lm_head, embedding if tied else head)


def test_a_folder_that_is_no_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RespecError, match="local folder"):
        read_target_tables(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(RespecError, match="embed_tokens"):
        read_target_tables(tmp_path)
    with pytest.raises(RespecError, match=r"config\.json"):
        load_drafter(tmp_path, EMBEDDING)
