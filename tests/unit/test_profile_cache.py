"""Profiles that are found again, and those that are no use."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from planner_cases import CHAIN, KEY, LONG, TREE, grid, profile

from sglang_respec.core import PLAIN
from sglang_respec.planner.profile_cache import (
    find_profile,
    keep_profile,
    profile_folder,
    profile_path,
)


@pytest.fixture
def path(tmp_path):
    return profile_path(tmp_path / "new" / "folder", KEY, (CHAIN, LONG))


def test_what_is_kept_is_found(path):
    assert find_profile(path, KEY, (CHAIN, LONG)) == (None, "")
    made = profile()
    assert keep_profile(made, path) == ""
    assert find_profile(path, KEY, (CHAIN, LONG)) == (made, "")


def test_each_part_of_the_key_has_a_file_of_its_own(tmp_path):
    keys = [KEY, *(replace(KEY, **{name: "other"}) for name in (
        "target", "drafter", "device", "parallelism", "dtype", "execution",
    )), replace(KEY, versions=(("sglang", "9"),))]  # fmt: skip
    paths = {profile_path(tmp_path, key, (CHAIN,)) for key in keys}
    assert len(paths) == len(keys)
    assert profile_path(tmp_path, KEY, (CHAIN, TREE)) not in paths
    assert profile_path(tmp_path, KEY, (CHAIN, TREE)) == profile_path(tmp_path, KEY, (TREE, CHAIN))


def test_a_name_that_is_no_file_name(tmp_path):
    path = profile_path(tmp_path, replace(KEY, target="../../étc/some model"), (CHAIN,))
    assert path.parent == tmp_path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("{}", "is no use"),
        ("[1, 2", "is not JSON"),
        (json.dumps({"format": "respec-profile/9"}), "is no use"),
        ("\x00\xff", "is not JSON"),
    ],
)
def test_a_spoilt_file_is_a_reason(path, text, reason):
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="latin-1")
    found, why_not = find_profile(path, KEY, (CHAIN,))
    assert found is None
    assert reason in why_not
    assert "\n" not in why_not


def test_another_key_or_shape_is_a_reason(path):
    keep_profile(profile(), path)
    found, why_not = find_profile(path, replace(KEY, device="H200"), (CHAIN,))
    assert found is None
    assert "device 'H100' instead of 'H200'" in why_not
    rounds = {each: grid(lambda w, b, c: 1e-2) for each in (PLAIN, CHAIN)}
    keep_profile(profile(stages={}, rounds=rounds), path)
    assert find_profile(path, KEY, (CHAIN,))[0] is not None
    found, why_not = find_profile(path, KEY, (CHAIN, LONG))
    assert found is None
    assert str(LONG) in why_not


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    why_not = keep_profile(profile(), tmp_path / "file" / "folder" / "p.json")
    assert "set profile_dir" in why_not


def test_where_they_lie(tmp_path):
    assert profile_folder(str(tmp_path)) == tmp_path
    assert profile_folder("", {"XDG_CACHE_HOME": "/c"}).as_posix() == "/c/sglang_respec/profiles"
    assert profile_folder("", {}).parts[-3:] == (".cache", "sglang_respec", "profiles")
