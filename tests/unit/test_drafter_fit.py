"""A drafter that does not fit is refused before anything is loaded, with the remedy."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest

from sglang_respec.drafter.fit import check_drafter_fits
from sglang_respec.errors import RespecError


def refuse(target, drafter, *fragments):
    with pytest.raises(RespecError) as caught:
        check_drafter_fits(target, drafter)
    message = str(caught.value)
    for fragment in fragments:
        assert fragment in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_matching_drafter_is_accepted(make_target, make_drafter):
    check_drafter_fits(make_target(), make_drafter())
    check_drafter_fits(str(make_target("again")), str(make_drafter("again-drafter")))


@pytest.mark.parametrize("name", ["Eagle3DeepseekV2ForCausalLM", "OtherForCausalLMEagle3"])
def test_other_eagle3_architectures_are_accepted(make_target, make_drafter, name):
    check_drafter_fits(make_target(), make_drafter(architectures=[name]))


def test_full_vocabulary_needs_no_map(make_target, make_drafter):
    check_drafter_fits(make_target(), make_drafter(draft_vocab_size=None))


def test_head_shared_with_the_target(make_target, make_drafter):
    drafter = make_drafter(draft_vocab_size=None, drop=("lm_head.weight", "embed_tokens.weight"))
    check_drafter_fits(make_target(), drafter)


def test_a_narrower_drafter_with_its_own_embedding(make_target, make_drafter):
    target = make_target(hidden_size=64)
    check_drafter_fits(target, make_drafter(target_hidden_size=64))
    refuse(
        target,
        make_drafter("bare", target_hidden_size=64, drop=("embed_tokens.weight",)),
        "embed_tokens.weight",
    )


def test_multimodal_target_keeps_its_sizes_in_a_nested_config(make_target, make_drafter):
    text = {"hidden_size": 32, "vocab_size": 100, "num_hidden_layers": 8}
    bare = {"hidden_size": None, "vocab_size": None, "num_hidden_layers": None}
    check_drafter_fits(make_target(text_config=text, **bare), make_drafter())
    deep = {"text_config": {**text, "hidden_size": 48}}
    refuse(make_target("deep", thinker_config=deep, **bare), make_drafter("other"), "48 wide")


def test_model_prefix_and_sharded_files(make_target, make_drafter):
    drafter = make_drafter(drop=("fc.weight",), shapes={"model.fc.weight": ("BF16", (32, 96))})
    check_drafter_fits(make_target(), drafter)


def test_hub_names_are_skipped(make_target, make_drafter):
    check_drafter_fits(make_target(), "owner/some-drafter-EAGLE3")
    check_drafter_fits("owner/some-target", make_drafter())
    refuse("owner/some-target", make_drafter("bad", architectures=["LlamaForCausalLM"]), "EAGLE-3")


# What is missing or damaged.


def test_missing_directory(make_target, tmp_path):
    refuse(make_target(), tmp_path / "nothing" / "here", "not a directory")


def test_missing_target_directory(make_drafter, tmp_path):
    refuse(tmp_path / "no" / "target", make_drafter(), "target", "not a directory")


def test_missing_config(make_target, tmp_path):
    (tmp_path / "empty").mkdir()
    refuse(make_target(), tmp_path / "empty", "no config.json")


@pytest.mark.parametrize("text", ["{", "[]", "\xff\xfe", ""])
def test_bad_config(make_target, make_drafter, text):
    drafter = make_drafter()
    (drafter / "config.json").write_bytes(text.encode("latin-1"))
    refuse(make_target(), drafter, "config.json", "again")


def test_no_weights(make_target, make_drafter):
    drafter = make_drafter()
    (drafter / "model.safetensors").unlink()
    refuse(make_target(), drafter, "no *.safetensors weights")


def test_pickle_weights_are_refused_with_the_remedy(make_target, make_drafter):
    drafter = make_drafter()
    (drafter / "model.safetensors").rename(drafter / "pytorch_model.bin")
    refuse(make_target(), drafter, "convert them to safetensors")


def test_index_names_a_missing_shard(make_target, make_drafter):
    drafter = make_drafter()
    index = {"weight_map": {"fc.weight": "model-00001-of-00002.safetensors"}}
    (drafter / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(make_target(), drafter, "model-00001-of-00002.safetensors", "does not exist")


def test_index_without_a_map(make_target, make_drafter):
    drafter = make_drafter()
    (drafter / "model.safetensors.index.json").write_text("{}")
    refuse(make_target(), drafter, "weight_map")


@pytest.mark.parametrize("keep", [0, 4, 8, 20, -1])
def test_truncated_file(make_target, make_drafter, keep):
    drafter = make_drafter()
    path = drafter / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    refuse(make_target(), drafter, "damaged", "again")


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all",
        b"[1, 2]",
        b"{}",
        b'{"fc.weight": {"dtype": "BF16"}}',
        b'{"fc.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 2]}}',
        b'{"fc.weight": {"dtype": "BF16", "shape": [2, -2], "data_offsets": [0, 8]}}',
        b'{"fc.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 0]}}',
        b'{"fc.weight": {"dtype": "BF16", "shape": "2x2", "data_offsets": [0, 8]}}',
        b'{"fc.weight": {"dtype": "BF16", "shape": [999, 999], "data_offsets": [0, 1996002]}}',
        b'{"fc.weight": 7}',
    ],
)
def test_lying_header(make_target, make_drafter, header):
    drafter = make_drafter()
    payload = struct.pack("<Q", len(header)) + header + b"\0" * 8
    (drafter / "model.safetensors").write_bytes(payload)
    refuse(make_target(), drafter, "damaged")


def test_enormous_header_length_is_not_read(make_target, make_drafter):
    drafter = make_drafter()
    (drafter / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refuse(make_target(), drafter, "header does not fit")


# What does not fit.


@pytest.mark.parametrize("names", [["LlamaForCausalLM"], ["LlamaForCausalLMEagle"], [], None])
def test_not_an_eagle3_drafter(make_target, make_drafter, names):
    refuse(make_target(), make_drafter(architectures=names), "not an EAGLE-3 drafter")


def test_hidden_size_of_another_target(make_target, make_drafter):
    refuse(make_target(hidden_size=48), make_drafter(), "width 32", "48 wide")


def test_fc_disagrees_with_its_config(make_target, make_drafter):
    drafter = make_drafter(shapes={"fc.weight": ("BF16", (32, 64))})
    refuse(make_target(), drafter, "[32, 64]", "[32, 96]")


def test_quantized_fc_is_not_judged_by_its_shape(make_target, make_drafter):
    check_drafter_fits(make_target(), make_drafter(shapes={"fc.weight": ("U8", (32, 48))}))


def test_no_fc(make_target, make_drafter):
    refuse(make_target(), make_drafter(drop=("fc.weight",)), "fc.weight")


def test_no_fc_is_needed_without_auxiliary_states(make_target, make_drafter):
    config = {"use_aux_hidden_state": False}
    check_drafter_fits(make_target(), make_drafter(drop=("fc.weight",), eagle_config=config))


def test_vocabulary_of_another_tokenizer(make_target, make_drafter):
    refuse(make_target(vocab_size=101), make_drafter(), "100 tokens", "101")


def test_reduced_vocabulary_without_a_map(make_target, make_drafter):
    refuse(make_target(), make_drafter(drop=("d2t",)), "no d2t map")


def test_head_rows(make_target, make_drafter):
    drafter = make_drafter(shapes={"lm_head.weight": ("BF16", (41, 32))})
    refuse(make_target(), drafter, "41 rows", "40")


def test_head_missing(make_target, make_drafter):
    refuse(make_target(), make_drafter(drop=("lm_head.weight",)), "no lm_head.weight")


def test_d2t_length(make_target, make_drafter):
    refuse(make_target(), make_drafter(d2t=[0] * 39), "39 entries", "40")


@pytest.mark.parametrize(("offset", "lands"), [(61, 100), (-40, -1)])
def test_d2t_out_of_range(make_target, make_drafter, offset, lands):
    refuse(make_target(), make_drafter(d2t=[0] * 39 + [offset]), f"39 to {lands}")


def test_d2t_at_both_ends_of_the_range(make_target, make_drafter):
    check_drafter_fits(make_target(), make_drafter(d2t=[0] * 39 + [60]))


def test_d2t_of_a_float_type(make_target, make_drafter):
    drafter = make_drafter(shapes={"d2t": ("F32", (40,))})
    refuse(make_target(), drafter, "type F32", "int64")


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size"])
@pytest.mark.parametrize("value", ["32", -1, 0, 1.5])
def test_sizes_that_are_no_sizes(make_target, make_drafter, name, value):
    drafter = make_drafter()
    config = json.loads((drafter / "config.json").read_text())
    (drafter / "config.json").write_text(json.dumps({**config, name: value}))
    refuse(make_target(), drafter, name, "positive integer")


@pytest.mark.parametrize("layers", [1, 2, 4, 5, 6])
def test_target_too_small_for_the_default_layers(make_target, make_drafter, layers):
    refuse(make_target(num_hidden_layers=layers), make_drafter(), "7 or more layers")


@pytest.mark.parametrize("layers", [7, 8, 36])
def test_target_large_enough_for_the_default_layers(make_target, make_drafter, layers):
    check_drafter_fits(make_target(num_hidden_layers=layers), make_drafter())


def test_named_layers_help_a_small_target(make_target, make_drafter):
    config = {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}
    check_drafter_fits(make_target(num_hidden_layers=4), make_drafter(eagle_config=config))


@pytest.mark.parametrize("ids", [[0, 1, 7], [-2, 1, 3], [0, 1, 99]])
def test_layers_out_of_range(make_target, make_drafter, ids):
    config = {"eagle_aux_hidden_state_layer_ids": ids}
    refuse(make_target(), make_drafter(eagle_config=config), "from 0 to 6")


def test_the_last_layer_is_allowed_where_the_target_may_capture_it(make_target, make_drafter):
    config = {"eagle_aux_hidden_state_layer_ids": [1, 4, 8]}
    target = make_target(architectures=["GptOssForCausalLM"])
    check_drafter_fits(target, make_drafter(eagle_config=config))


def test_repeated_layers(make_target, make_drafter):
    config = {"eagle_aux_hidden_state_layer_ids": [2, 2, 5]}
    refuse(make_target(), make_drafter(eagle_config=config), "repeat")


@pytest.mark.parametrize("ids", ["2,4,5", [], [1.5, 2, 3]])
def test_layers_of_a_wrong_kind(make_target, make_drafter, ids):
    drafter = make_drafter()
    config = json.loads((drafter / "config.json").read_text())
    config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": ids}
    (drafter / "config.json").write_text(json.dumps(config))
    refuse(make_target(), drafter, "list of layer numbers")


def test_number_of_layers_disagrees(make_target, make_drafter):
    drafter = make_drafter(num_aux_hidden_states=4)
    refuse(make_target(), drafter, "expects 4", "give 3")


def test_two_layers_named(make_target, make_drafter):
    config = {"eagle_aux_hidden_state_layer_ids": [2, 5]}
    check_drafter_fits(make_target(), make_drafter(eagle_config=config))


def test_needs_neither_torch_nor_sglang():
    code = (
        "import sys, sglang_respec.drafter.fit, sglang_respec.refusals, sglang_respec.config;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'sglang', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
