"""`respec simulate` from outside."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from respec_server.simulate import describe, plot, render, simulate
from sglang_respec.errors import RespecError
from sglang_respec.planner.contest import contest


def test_a_table_and_its_json(tmp_path, capsys):
    path = tmp_path / "s.json"
    arguments = ["--trace", "steady", "--profile", "cpu_demo_pair", "--policy", "plain"]
    assert simulate([*arguments, "--policy", "auto", "--seeds", "1", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert "steady on cpu_demo_pair" in text
    lines = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert lines.index("auto") < lines.index("plain")  # the best comes first
    document = json.loads(path.read_text())
    assert document["profiles"]["cpu_demo_pair"]["kind"] == "derived"
    figures = document["rows"][0]["policies"]["auto"]
    assert 0.9 < figures["of_oracle"]["median"] < 1.1
    assert figures["over_plain"]["median"] > 1.0


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--trace", "stedy"], "steady"),
        (["--policy", "best"], "auto"),
        (["--profile", "gpu"], "gpu_llama8b"),
        (["--seeds", "0"], "--seeds"),
        (["--trace", "steady", "--policy", "plain", "--profile", "cpu_demo_pair", "--seeds", "1",
          "--json", "no/such/folder.json"], "cannot be written"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(arguments, word):
    with pytest.raises(RespecError, match=word):
        simulate(arguments)


def test_a_plot(tmp_path):
    names = ["plain", "always:3,1,4", "always:1,1,2"]
    rows = list(contest(["cpu_demo_pair"], ["steady"], names, [0]))
    document = describe(["cpu_demo_pair"], rows)
    plot(document, str(tmp_path / "s.png"))
    assert (tmp_path / "s.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "always:3,1,4" in render(rows[0])
    with pytest.raises(RespecError, match="cannot be written"):
        plot(document, str(tmp_path / "no" / "s.png"))


def test_neither_torch_nor_sglang_nor_matplotlib_without_need():
    code = (
        "import sys; from respec_server.simulate import simulate;"
        "simulate('--trace steady --policy plain --profile cpu_demo_pair --seeds 1'.split());"
        "heavy = {'torch', 'sglang', 'matplotlib', 'numpy'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
