"""A start that cannot work ends with one sentence that says why and what to do."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from launchpad import APPENDED_PATHS
from serving import Servers

from respec_server.bundled import demo_models
from respec_server.process import RESPEC_SERVE, free_port

pytestmark = pytest.mark.server

VERIFY = "verify_tree_greedy_func"


@dataclass(frozen=True)
class Start:
    """A command line and its surroundings."""

    arguments: Sequence[str]
    environ: dict[str, str] = field(default_factory=dict)
    path: str = ""  # searched before everything else


def with_models(target: Path | None = None, drafter: Path | None = None, *more: str) -> list[str]:
    bundled_target, bundled_drafter = demo_models()
    return [
        *("--model-path", str(target or bundled_target)),
        *("--speculative-algorithm", "EAGLE3"),
        *("--speculative-draft-model-path", str(drafter or bundled_drafter)),
        *more,
    ]


def changed(model: Path, folder: Path, **config: object) -> Path:
    """A copy of a model with some values of its config.json changed."""
    copy = folder / f"changed-{model.name}"
    shutil.copytree(model, copy, dirs_exist_ok=True)
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**values, **config}))
    return copy


def other_version(folder: Path) -> str:
    """A search path on which Python's metadata says that SGLang is 9.9.9."""
    metadata = folder / "other-version" / "sglang-9.9.9.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 9.9.9\n")
    return str(metadata.parent)


def second_plugin(folder: Path, body: str) -> str:
    """A search path with another plugin for SGLang: what its `register` does is `body`."""
    path = folder / "second-plugin"
    metadata = path / "second_plugin-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: second-plugin\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[sglang.srt.plugins]\nsecond = second_plugin:register\n"
    )
    (path / "second_plugin.py").write_text(
        "from sglang.kernels.ops.speculative import spec_tree\n"
        "from sglang.srt.plugins.hook_registry import HookRegistry, HookType\n"
        f"TARGET = 'sglang.kernels.ops.speculative.spec_tree.{VERIFY}'\n"
        "def mine(*_, **__):\n    raise AssertionError\n"
        f"def register():\n    {body}\n"
    )
    return str(path)


def missing_drafter(folder: Path) -> Start:
    return Start(with_models(drafter=folder / "absent"))


def truncated_drafter(folder: Path) -> Start:
    copy = changed(demo_models()[1], folder)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return Start(with_models(drafter=copy))


def other_hidden_size(folder: Path) -> Start:
    return Start(with_models(target=changed(demo_models()[0], folder, hidden_size=256)))


def too_few_layers(folder: Path) -> Start:
    return Start(with_models(target=changed(demo_models()[0], folder, num_hidden_layers=4)))


def rust_server(folder: Path) -> Start:
    return Start(with_models(), environ={"SGLANG_RUST_SERVER": "1"})


def without_our_plugin(folder: Path) -> Start:
    return Start(with_models(), environ={"SGLANG_PLUGINS": "another"})


def grpc(folder: Path) -> Start:
    return Start(with_models(None, None, "--smg-grpc-mode"))


def tokenizer_workers(folder: Path) -> Start:
    return Start(with_models(None, None, "--tokenizer-worker-num", "2"))


def wrong_version(folder: Path) -> Start:
    return Start(with_models(), path=other_version(folder))


def unknown_setting(folder: Path) -> Start:
    return Start(with_models(None, None, "--respec-portable-thread", "2"))


def no_model(folder: Path) -> Start:
    return Start(["--port", "1"])


SENTENCES: dict[Callable[[Path], Start], str] = {
    missing_drafter: "absent is not a directory; give the directory",
    truncated_drafter: "model.safetensors of the drafter",
    other_hidden_size: "made for hidden states of width 192",
    too_few_layers: "A target of 4 layers is too small",
    rust_server: "unset SGLANG_RUST_SERVER",
    grpc: "The gRPC server",
    tokenizer_workers: "--tokenizer-worker-num must stay 1",
    wrong_version: "needs SGLang 0.5.23 exactly, and 9.9.9 is installed",
    unknown_setting: "did you mean 'portable_threads'",
    without_our_plugin: "SGLANG_PLUGINS=another leaves this extension out",
    no_model: "No model is given; add --model-path MODEL, or --demo",
}


def end_of(command: Sequence[str], start: Start, path: str) -> subprocess.CompletedProcess[str]:
    # A start that is not refused serves until it is killed: not on the default port.
    address = ["--host", "127.0.0.1", "--port", str(free_port())]
    environ = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [*command, *start.arguments, *address],
        env={**environ, **start.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("start", SENTENCES, ids=lambda each: each.__name__)
def test_respec_serve(start: Callable[[Path], Start], tmp_path: Path) -> None:
    """One line on stderr, before SGLang is imported: a package that cannot be is in its place."""
    trap = tmp_path / "trap" / "sglang"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise SystemExit('SGLang was imported')")
    case = start(tmp_path)
    ended = end_of(RESPEC_SERVE, case, os.pathsep.join([case.path, str(trap.parent)]))
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("respec: ")
    assert SENTENCES[start] in line
    assert ended.returncode == 2


def paged_tree(folder: Path) -> Start:
    shape = ("--speculative-num-steps", "3", "--speculative-eagle-topk", "4")
    nodes = ("--speculative-num-draft-tokens", "16", "--page-size", "16")
    return Start(with_models(None, None, *shape, *nodes))


BY_THE_HOOK: dict[Callable[[Path], Start], str] = {
    **{start: SENTENCES[start] for start in (other_hidden_size, rust_server, wrong_version)},
    paged_tree: "Draft trees on a CPU need --page-size 1, and it is 16",
}


def sentence_of(ended: subprocess.CompletedProcess[str]) -> str:
    """The last line that SGLang's command left, which must be the only one of ours."""
    lines = ended.stderr.splitlines()
    ours = [line for line in lines if line.startswith("respec: ")]
    assert ours == lines[-1:], ended.stderr[-2000:]
    assert ended.returncode == 1
    return ours[0]


@pytest.mark.parametrize("start", BY_THE_HOOK, ids=lambda each: each.__name__)
def test_sglang_serve(start: Callable[[Path], Start], servers: Servers, tmp_path: Path) -> None:
    """Here it is the hook on SGLang's parsed arguments that refuses."""
    case = start(tmp_path)
    ended = end_of(servers.command("sglang"), case, case.path)
    assert BY_THE_HOOK[start] in sentence_of(ended)
    assert "Traceback" not in ended.stderr


REGISTER = "HookRegistry.register(TARGET, mine, HookType.REPLACE)"
# What another plugin does, whether its path comes before or after ours, and the reason given.
OTHER_PLUGINS = {
    "registered before": (REGISTER, "before", "replaces it"),
    "applied before": (f"{REGISTER}; HookRegistry.apply_hooks()", "before", "patched it first"),
    "assigned afterwards": (f"spec_tree.{VERIFY} = mine", "after", "replaces it"),
    "deleted afterwards": (f"del spec_tree.{VERIFY}", "after", "has no such name"),
}


@pytest.mark.parametrize("name", OTHER_PLUGINS)
def test_a_hook_lost_to_another_plugin_stops_the_server(
    name: str, servers: Servers, tmp_path: Path
) -> None:
    body, when, reason = OTHER_PLUGINS[name]
    path = second_plugin(tmp_path, body)
    if when == "before":
        case = Start(with_models(), path=path)
    else:
        case = Start(with_models(), environ={APPENDED_PATHS: path})
    sentence = sentence_of(end_of(servers.command("sglang"), case, case.path))
    assert "These hooks did not land in SGLang: verify-tree on" in sentence
    assert reason in sentence
    assert "respec doctor" in sentence
