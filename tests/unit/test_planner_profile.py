"""Profiles: rounds from stages, files that are whole, and files that are not."""

from __future__ import annotations

import dataclasses
import json

import pytest
from planner_cases import CHAIN, KEY, TREE, grid, profile

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.contest import BUNDLED, load_profile
from sglang_respec.planner.profile import HeldOut, Profile


def test_a_round_is_the_sum_of_its_stages():
    made, at = profile(host_s=1e-3), (16, 500.0)
    stage = {name: made.stages[name].at for name in made.stages}
    expected = (
        2 * stage["draft_step"](4, *at) + stage["verify"](8, *at) + stage["extend"](8, *at) + 1e-3
    )
    assert made.round_seconds(TREE, *at) == pytest.approx(expected)
    assert made.round_seconds(PLAIN, *at) == stage["plain"](1, *at)


def test_a_round_measured_whole_comes_first():
    whole = grid(lambda w, b, c: 0.5)
    made = profile(rounds={CHAIN: whole})
    assert made.round_seconds(CHAIN, 4, 100) == pytest.approx(0.5)
    assert made.round_seconds(TREE, 4, 100) < 0.1


def test_held_out_points_give_the_error():
    plain = profile().round_seconds(PLAIN, 8, 1000)
    made = profile(
        held_out=(HeldOut(PLAIN, 8, 1000, plain / 1.1), HeldOut(PLAIN, 8, 1000, plain / 0.9))
    )
    assert made.held_out_errors() == pytest.approx([0.1, -0.1])
    assert made.relative_error == pytest.approx(0.1)
    assert profile().relative_error is None
    assert profile().comparative_error is None


def test_what_all_configurations_are_off_by_is_no_doubt_about_a_choice():
    seconds = {config: profile().round_seconds(config, 8, 1000) for config in (PLAIN, CHAIN)}

    def off(plain, chain):
        points = [(PLAIN, plain), (CHAIN, chain)]
        return profile(
            held_out=tuple(HeldOut(c, 8, 1000, seconds[c] / (1 + error)) for c, error in points)
        )

    assert off(0.6, 0.6).comparative_error == pytest.approx(0.0, abs=1e-9)
    assert off(0.6, 0.6).relative_error == pytest.approx(0.6)
    assert off(0.5, 0.7).comparative_error == pytest.approx(0.2 / 2**0.5)
    alone = profile(held_out=(HeldOut(PLAIN, 8, 1000, seconds[PLAIN] / 1.3),))
    assert alone.comparative_error == alone.relative_error == pytest.approx(0.3)


def test_a_file_comes_back(tmp_path):
    made = profile(
        rounds={CHAIN: grid(lambda w, b, c: 1e-2 * b)},
        graph_bytes={TREE: 1 << 20},
        held_out=(HeldOut(CHAIN, 8.0, 1000.0, 0.08),),
        host_s=1e-4,
        switch_s=1e-5,
    )
    made.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == made
    assert [each.name for each in tmp_path.iterdir()] == ["p.json"]


def document(**changes):
    made = json.loads(profile().to_json())
    for name, value in changes.items():
        if value is None:
            del made[name]
        else:
            made[name] = value
    return made


def broken():
    """(document, a word of the sentence)"""
    stages = document()["stages"]
    ragged = {**stages, "plain": {**stages["plain"], "seconds": [[[0.1, 0.2], [0.1]]]}}
    words = {**stages, "plain": {**stages["plain"], "seconds": [[["a", "b"]] * 3]}}
    flat = {**stages, "plain": {**stages["plain"], "seconds": [1.0, 2.0]}}
    none = {**stages, "plain": {**stages["plain"], "seconds": [None]}}
    down = {**stages, "plain": {**stages["plain"], "batch_sizes": [64, 16, 1]}}
    point = {"config": "plain", "batch_size": -1, "context_tokens": 5, "seconds": 0.1}
    return [
        ([], "not a JSON object"),
        ({}, "lacks 'format'"),
        (document(format="other/9"), "format"),
        (document(kind="guessed"), "kind"),
        (document(key=None), "lacks 'key'"),
        (document(key={"target": "x"}), "lacks 'versions'"),
        (document(source=None), "lacks 'source'"),
        (document(stages={}), "plain decoding"),
        (document(stages={"plain": {}}), "lacks 'widths'"),
        (document(stages={**stages, "dance": stages["plain"]}), "dance"),
        (document(stages=ragged), "3 x 2"),
        (document(stages=words), "must be numbers"),
        (document(stages=flat), "three lists deep"),
        (document(stages=none), "three lists deep"),
        (document(stages=down), "ascending"),
        (document(host_s=-1), "host_s"),
        (document(host_s="soon"), "host_s"),
        (document(graph_bytes={"3,1,4": -5}), "whole number of bytes"),
        (document(graph_bytes={"3,1": 5}), "steps,topk,draft_tokens"),
        (document(held_out=[point]), "positive"),
        (document(stages={"plain": stages["plain"]}, held_out=[{**point, "batch_size": 1,
          "config": "3,1,4"}]), "no step times"),
    ]  # fmt: skip


@pytest.mark.parametrize(("content", "word"), broken())
def test_a_broken_file_is_one_sentence_with_a_remedy(tmp_path, content, word):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(content))
    with pytest.raises(RespecError, match="respec profile") as caught:
        Profile.load(path)
    assert word in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": NaN'])
def test_what_is_no_json_says_so(tmp_path, content):
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(RespecError, match="not JSON"):
        Profile.load(path)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(RespecError, match="cannot be read"):
        Profile.load(tmp_path / "none.json")
    with pytest.raises(RespecError, match="cannot be written"):
        profile().save(tmp_path / "no" / "folder.json")


def test_a_foreign_profile_names_every_difference():
    other = dataclasses.replace(KEY, device="H200", versions=(("sglang", "0.6.0"),))
    profile().require(KEY, "p.json")
    with pytest.raises(RespecError) as caught:
        profile().require(other, "p.json")
    assert "device 'H100' instead of 'H200'" in str(caught.value)
    assert "version of sglang '0.5.23' instead of '0.6.0'" in str(caught.value)
    assert "target" not in str(caught.value)


def test_a_profile_without_stages_knows_only_its_rounds():
    made = profile(stages={"plain": grid(lambda w, b, c: 0.01)}, rounds={CHAIN: grid(
        lambda w, b, c: 0.02)})  # fmt: skip
    assert made.composes(CHAIN)
    assert not made.composes(TREE)
    assert made.extend_seconds(100, 4, 100) == 0.0
    with pytest.raises(RespecError, match="no step times"):
        made.round_seconds(TREE, 1, 1)


# vLLM pull request 32374, milliseconds; the bundled profile must give the source back.
@pytest.mark.parametrize(
    ("batch", "steps", "milliseconds"),
    [(1, 0, 6.52), (1, 1, 7.37), (1, 3, 8.84), (1, 5, 10.33), (64, 0, 7.77), (64, 1, 9.66),
     (64, 3, 13.50), (64, 5, 16.83), (256, 0, 14.49), (256, 1, 27.14), (256, 3, 41.85),
     (256, 5, 57.40)],
)  # fmt: skip
def test_the_gpu_profile_reproduces_its_source(batch, steps, milliseconds):
    config = SpeculationConfig(steps, 1, steps + 1)
    seconds = load_profile("gpu_llama8b").round_seconds(config, batch, 256)
    assert 1e3 * seconds == pytest.approx(milliseconds, rel=1e-9)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_profiles_say_what_they_are(name):
    assert load_profile(name).kind == "derived"
    assert "Assumed" in load_profile(name).source


def test_an_unknown_profile_names_the_bundled_ones():
    with pytest.raises(RespecError, match="gpu_llama8b"):
        load_profile("gpu")
