"""The committed demo pair: sizes, configuration, tokenizer; no weights are run here."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import sglang_respec
from sglang_respec.demo_task import MAX_OPERAND, make_problem, worked_answer
from sglang_respec.learner.checkpoint import read_drafter_config

MODELS = Path(sglang_respec.__file__).parent / "demo_models"
TARGET, DRAFTER = MODELS / "target", MODELS / "drafter"
TENSOR_PARALLEL = 2
MAX_BYTES = 10_000_000


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TARGET / "tokenizer.json"))


def test_the_pair_is_small_and_free_of_pickle() -> None:
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < MAX_BYTES


def test_weights_are_stored_in_bfloat16() -> None:
    for directory in (TARGET, DRAFTER):
        with safe_open(directory / "model.safetensors", "pt") as weights:
            dtypes = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 (not a dict)
        assert {dtypes.pop("d2t", "I64"), dtypes.pop("t2d", "BOOL")} == {"I64", "BOOL"}
        assert set(dtypes.values()) == {"BF16"}


def test_the_target_is_what_sglang_and_tensor_parallelism_expect() -> None:
    config = read_json(TARGET / "config.json")
    layers = config["num_hidden_layers"]
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["max_position_embeddings"] >= 2048
    assert config["num_attention_heads"] % TENSOR_PARALLEL == 0
    assert config["num_key_value_heads"] % TENSOR_PARALLEL == 0
    assert len({2, layers // 2, layers - 3}) == 3, "EAGLE-3 reads three different layers"


def test_the_drafter_fits_the_target() -> None:
    target, drafter = read_json(TARGET / "config.json"), read_drafter_config(DRAFTER)
    assert drafter.vocab_size == target["vocab_size"]
    assert drafter.hidden_size == drafter.target_hidden_size == target["hidden_size"]
    assert drafter.rope_theta == target["rope_parameters"]["rope_theta"]
    assert drafter.draft_vocab_size < drafter.vocab_size
    assert "eagle_config" not in read_json(DRAFTER / "config.json"), "SGLang's default layers"


def test_the_vocabulary_maps_agree() -> None:
    with safe_open(DRAFTER / "model.safetensors", "pt") as weights:
        d2t, t2d = weights.get_tensor("d2t"), weights.get_tensor("t2d")
    ids = d2t + d2t.new_ones(len(d2t)).cumsum(0) - 1
    assert ids.tolist() == t2d.nonzero()[:, 0].tolist()


def test_the_draft_vocabulary_covers_the_task(tokenizer: Tokenizer) -> None:
    with safe_open(DRAFTER / "model.safetensors", "pt") as weights:
        drafted = weights.get_tensor("t2d")
    end = tokenizer.token_to_id("<|im_end|>")
    for seed in range(50):
        ids = tokenizer.encode(worked_answer(make_problem(seed, "held_out"))).ids
        assert drafted[[*ids, end]].all()


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    loaded = Tokenizer.from_file(str(TARGET / "tokenizer.json"))
    encoded = loaded.encode(text)
    assert loaded.decode(encoded.ids, skip_special_tokens=False) == text


def test_digits_and_steps_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2048").tokens == ["2", "0", "4", "8"]
    for operand in range(1, MAX_OPERAND + 1):
        for step in (f" {operand:+d}", f" {-operand:+d}"):
            assert len(tokenizer.encode(step).ids) == 1, step
    assert tokenizer.get_vocab_size() == read_json(TARGET / "config.json")["vocab_size"]


def test_transformers_reads_the_tokens_that_the_file_says(tokenizer: Tokenizer) -> None:
    """It rebuilds the tokenizer of a Qwen2 checkpoint in its own way; a server gets that one."""
    loaded = AutoTokenizer.from_pretrained(TARGET)
    for seed in range(20):
        problem = make_problem(seed, "held_out")
        text = f"{problem.prompt}<|im_end|>\n{worked_answer(problem, random.Random(seed))}"
        assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
        assert loaded.decode(tokenizer.encode(text).ids) == text


def test_generation_ends_where_the_chat_template_ends(tokenizer: Tokenizer) -> None:
    end = tokenizer.token_to_id("<|im_end|>")
    assert read_json(TARGET / "generation_config.json")["eos_token_id"] == end
    assert read_json(TARGET / "config.json")["eos_token_id"] == end
    settings = read_json(TARGET / "tokenizer_config.json")
    assert tokenizer.token_to_id(settings["eos_token"]) == end
    assert "<|im_start|>assistant" in settings["chat_template"]
