"""`respec profile` without a server: what it prints, draws and refuses."""

from __future__ import annotations

import pytest
from planner_cases import CHAIN, LONG, grid, profile

from respec_server import profile as command
from sglang_respec.core import PLAIN
from sglang_respec.errors import RespecError


@pytest.fixture
def saved(tmp_path):
    rounds = {
        PLAIN: grid(lambda w, b, c: 1e-2),
        CHAIN: grid(lambda w, b, c: 2e-2),
        LONG: grid(lambda w, b, c: 4e-2),
    }
    path = tmp_path / "profile.json"
    profile(rounds=rounds).save(path)
    return path


def test_a_saved_profile_is_shown(saved, capsys, tmp_path):
    copy, picture = tmp_path / "copy.json", tmp_path / "p.png"
    arguments = ["--show", str(saved), "--out", str(copy), "--plot", str(picture)]
    assert command.profile(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "10.00" in next(line for line in lines if line.strip().startswith("plain "))
    assert "20.00 (2.00)" in next(line for line in lines if line.strip().startswith("3,1,4"))
    assert "40.00 (4.00)" in next(line for line in lines if line.strip().startswith("7,1,8"))
    assert lines[-1] == str(saved)
    assert copy.read_bytes() == saved.read_bytes()
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--show", "/no/such/file"], "cannot be read"),
        (["--show", "x", "--demo"], "--show starts no server"),
        (["--demo", "--respec-policy", "plain"], "leave out --respec-policy"),
        (["--demo", "--respec-profile=x"], "leave out --respec-profile"),
        (["--demo", "--respec-profile-seconds", "0"], "measures nothing"),
        (["--model-path", "x"], "nothing to choose between"),
        (["--demo", "--pp-size", "2"], "--pp-size above 1"),
        ([], "No model is given"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words):
    with pytest.raises(RespecError, match=words):
        command.profile(arguments)
