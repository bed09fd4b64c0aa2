"""The borders of the house: who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from sglang_respec.config import knobs

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
PACKAGES = {
    "sglang_respec": ROOT / "sglang_respec",
    "respec_kernels": ROOT / "kernels" / "respec_kernels",
    "respec_server": ROOT / "server" / "respec_server",
}
UPSTREAM = "sglang_respec.upstream"
# The plugin enters the hooks; the hook check, a process of its own, asks whether they landed; the
# simulator, when asked to, runs SGLang's own policy beside ours.
MAY_IMPORT_UPSTREAM = {
    "sglang_respec.plugin",
    "respec_server.hook_check",
    "respec_server.simulate",
}


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            found[name] = path
    return found


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """Absolute names of everything a module imports, at any depth, relative imports resolved."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + (1 if is_package else 0)]
                base = ".".join((*kept, base)) if base else ".".join(kept)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def forbidden(module: str, imported: str) -> str | None:
    """Why ``module`` may not import ``imported``; None when it may."""
    in_upstream = within(module, UPSTREAM)
    if within(imported, "sglang") and not in_upstream:
        return "only sglang_respec/upstream imports SGLang"
    if within(imported, UPSTREAM) and not in_upstream and module not in MAY_IMPORT_UPSTREAM:
        return "only the plugin, the hook check and the simulator import upstream"
    if within(module, "respec_kernels") and (
        within(imported, "sglang_respec") or within(imported, "respec_server")
    ):
        return "the kernels know nobody"
    if within(module, "sglang_respec") and within(imported, "respec_server"):
        return "imports go from respec_server to sglang_respec"
    if within(module, "respec_server") and within(imported, "torch"):
        return "the server package runs without torch"
    if within(module, "sglang_respec.planner") and any(
        within(imported, name) for name in ("torch", "triton", "numpy", "respec_kernels")
    ):
        return "the planner is pure Python"
    return None


@pytest.mark.parametrize(("name", "path"), modules().items(), ids=modules())
def test_import_table(name, path):
    imported = imports(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
    broken = {each: forbidden(name, each) for each in imported if forbidden(name, each)}
    assert not broken


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sglang_respec.core", "import sglang.srt"),
        ("sglang_respec.core", "def f():\n    from sglang.srt import x"),
        ("sglang_respec.drafter.fit", "from sglang_respec.upstream import hooks"),
        ("sglang_respec.drafter.fit", "from ..upstream import hooks"),
        ("respec_server.status", "import sglang_respec.upstream.hooks"),
        ("respec_server.cli", "import torch"),
        ("respec_kernels.reference.tree", "from sglang_respec import core"),
        ("sglang_respec.core", "from respec_server import cli"),
        ("sglang_respec.planner.policy", "import torch.nn"),
    ],
)
def test_the_table_catches(module, source):
    assert any(forbidden(module, each) for each in imports(source, module, is_package=False))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sglang_respec.upstream.hooks", "from sglang.srt.plugins import hook_registry"),
        ("sglang_respec.upstream.portable.pool", "from ..hooks import table"),
        ("sglang_respec.plugin", "from sglang_respec.upstream import hooks"),
        ("sglang_respec.sampling.noise", "import torch"),
        ("sglang_respec.sampling.noise", "from respec_kernels import noise"),
        ("sglang_respec.core", "import sglang_respec.errors"),
    ],
)
def test_the_table_allows(module, source):
    assert not any(forbidden(module, each) for each in imports(source, module, is_package=False))


def test_the_containers_are_no_packages():
    # SGLang depends on a distribution whose import name is `kernels`.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "server" / "__init__.py").exists()


def test_every_setting_is_read_by_somebody():
    read = {
        node.attr
        for name, path in modules().items()
        if name != "sglang_respec.config"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert {knob.name for knob in knobs()} <= read


def python_files() -> list[Path]:
    folders = ("sglang_respec", "kernels", "server", "scripts", "tests")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_every_file_is_one_room():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in python_files()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long
