"""What `respec serve` hands to SGLang."""

from __future__ import annotations

import pytest

from respec_server.launch import preflight, read_flags, resolve
from sglang_respec.errors import RespecError


def flags(launch) -> dict:
    return read_flags(launch.arguments)


def test_without_a_drafter_it_is_a_plain_server():
    launch = resolve(["--model-path", "m", "--port", "1"], {})
    assert launch.arguments == ["--model-type", "llm", "--model-path", "m", "--port", "1"]
    assert launch.drafter is None


def test_a_drafter_means_eagle3_with_a_chain_of_five():
    launch = resolve(["--model-path", "m", "--drafter-path", "d"], {})
    found = flags(launch)
    assert found["speculative_algorithm"] == "EAGLE3"
    assert found["speculative_draft_model_path"] == "d"
    assert found["speculative_num_steps"] == 5
    assert found["speculative_eagle_topk"] == 1
    assert found["speculative_num_draft_tokens"] == 6
    assert (launch.target, launch.drafter) == ("m", "d")


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        (["--speculative-num-steps", "3"], (3, 1, 4)),
        (["--speculative-num-steps=3", "--speculative-eagle-topk=2"], (3, 2, 7)),
        (["--speculative-num-draft-tokens", "8", "--speculative-eagle-topk", "4"], (5, 4, 8)),
    ],
)
def test_the_rest_of_the_shape_follows_what_was_given(given, shape):
    found = flags(resolve(["--model-path", "m", "--drafter-path", "d", *given], {}))
    names = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
    assert tuple(found[name] for name in names) == shape


def test_what_the_user_wrote_comes_last():
    launch = resolve(
        ["--drafter-path", "d", "--model-path", "m", "--mem-fraction-static", "0.5"], {}
    )
    assert launch.arguments[-4:] == ["--model-path", "m", "--mem-fraction-static", "0.5"]


def test_an_sglang_config_file_keeps_its_shape():
    found = flags(resolve(["--config", "c.yaml", "--drafter-path", "d"], {}))
    assert "speculative_num_steps" not in found
    assert found["speculative_algorithm"] == "EAGLE3"


def test_a_positional_model():
    launch = resolve(["owner/model", "--drafter-path", "d"], {})
    assert launch.target == "owner/model"


def test_another_algorithm_is_refused():
    with pytest.raises(RespecError, match="NGRAM"):
        resolve(
            ["--model-path", "m", "--drafter-path", "d", "--speculative-algorithm", "NGRAM"], {}
        )


def test_sglangs_own_spelling_of_the_drafter_is_checked_too(make_target, make_drafter):
    drafter = make_drafter(architectures=["LlamaForCausalLM"])
    launch = resolve(
        ["--model-path", str(make_target()), "--speculative-draft-model-path", str(drafter)], {}
    )
    with pytest.raises(RespecError, match="not an EAGLE-3 drafter"):
        preflight(launch, {})


def test_switched_off_nothing_is_refused():
    launch = resolve(["--model-path", "m", "--tokenizer-worker-num", "4"], {})
    preflight(launch, {"SGLANG_RESPEC": "0"})
    with pytest.raises(RespecError):
        preflight(launch, {})


def test_demo_serves_the_bundled_models_on_loopback():
    launch = resolve(["--demo", "--port", "4000"], {})
    found = flags(launch)
    assert found["host"] == "127.0.0.1"
    assert found["port"] == 4000
    assert launch.target is not None
    assert launch.target.endswith("target")
    assert launch.drafter is not None
    assert launch.drafter.endswith("drafter")
    preflight(launch, {})


def test_the_demo_runs_on_one_thread_unless_told():
    assert resolve(["--demo"], {}).config.portable_threads == 1
    told = ["--demo", "--respec-portable-threads", "2"]
    assert resolve(told, {}).config.portable_threads == 2
    assert resolve(["--model-path", "m"], {}).config.portable_threads == 0


def test_settings_from_flags_lie_over_those_from_a_file(tmp_path):
    path = tmp_path / "respec.toml"
    path.write_text("portable_threads = 2\nkernels = 'reference'\n")
    arguments = ["--model-path", "m", "--respec-portable-threads", "3"]
    config = resolve([*arguments, "--respec-config", str(path)], {}).config
    assert (config.portable_threads, config.kernels) == (3, "reference")
    config = resolve(arguments, {"SGLANG_RESPEC_CONFIG": str(path)}).config
    assert (config.portable_threads, config.kernels) == (3, "reference")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--a-b", "1", "--c"], {"a_b": 1, "c": True}),
        (["--a=x=y", "--b", "-1"], {"a": "x=y", "b": -1}),
        (["--a", "1", "2", "--a", "3"], {"a": 3}),
        (["plain"], {}),
    ],
)
def test_read_flags(arguments, found):
    assert read_flags(arguments) == found
