"""Every SGLang name we rely on exists in the installed SGLang, with the parameters we pass.

SGLang is read as text: importing it takes half a minute, parsing these files takes a second.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_respec.upstream.contract import UPSTREAM_NAMES

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@functools.cache
def package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@functools.cache
def parse(module: str, root: Path | None = None) -> ast.Module | None:
    package, *rest = module.split(".")
    base = (root or package_folder(package)).joinpath(*rest)
    for path in (base.with_suffix(".py") if rest else base / "__init__.py", base / "__init__.py"):
        if path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"))
    return None


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body and of the ``if``, ``try`` and ``with`` blocks in it."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body)


def bound_names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.split(".")[0] for alias in node.names}
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {
        each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)
    }


def find(module: str, qualname: str, root: Path | None = None) -> ast.stmt | None:
    """The statement that binds ``qualname``; base classes and re-exports are followed."""
    tree = parse(module, root)
    if tree is None:
        return None
    head, _, rest = qualname.partition(".")
    found = next((each for each in statements(tree.body) if head in bound_names(each)), None)
    if isinstance(found, ast.ImportFrom) and found.module and not found.level:
        original = next(a.name for a in found.names if (a.asname or a.name) == head)
        deeper = find(found.module, f"{original}.{rest}" if rest else original, root)
        return deeper if rest else deeper or found
    if not rest:
        return found
    if not isinstance(found, ast.ClassDef):
        return None
    return _find_member(module, found, rest, root)


def _find_member(module: str, owner: ast.ClassDef, name: str, root: Path | None) -> ast.stmt | None:
    for node in statements(owner.body):
        if name in bound_names(node):
            return node
    for node in ast.walk(owner):  # attributes that methods set on self
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Attribute) and t.attr == name for t in targets):
                return node
    for base in owner.bases:
        if isinstance(base, ast.Name) and base.id != owner.name:
            inherited = find(module, f"{base.id}.{name}", root)
            if inherited is not None:
                return inherited
    return None


def parameters(node: ast.stmt) -> tuple[str, ...]:
    """Parameter names in order, ``self`` and ``cls`` left out; of a class, those of its init."""
    if isinstance(node, ast.ClassDef):
        init = next((each for each in node.body if getattr(each, "name", "") == "__init__"), None)
        if init is not None:
            return parameters(init)
        fields = [each.target for each in node.body if isinstance(each, ast.AnnAssign)]
        return tuple(each.id for each in fields if isinstance(each, ast.Name))
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    spec = node.args
    names = [each.arg for each in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    return tuple(name for name in names if name not in ("self", "cls"))


def complaint(
    module: str, qualname: str, params: tuple[str, ...] | None, root: Path | None = None
) -> str | None:
    """What is wrong with one entry; None when the installed source has it."""
    node = find(module, qualname, root)
    if node is None:
        return f"{module}:{qualname} does not exist"
    if params is None:
        return None
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return f"{module}:{qualname} is not defined where its parameters can be read"
    wanted = tuple(name for name in params if name not in ("self", "cls"))
    found = parameters(node)
    if found[: len(wanted)] != wanted:
        return f"{module}:{qualname} takes {found}, we rely on {wanted}"
    return None


@pytest.mark.parametrize(
    "entry", UPSTREAM_NAMES, ids=[f"{each.module}:{each.qualname}" for each in UPSTREAM_NAMES]
)
def test_upstream_still_has(entry):
    assert complaint(entry.module, entry.qualname, entry.params) is None
    assert entry.why.strip()


def test_no_entry_twice():
    keys = [(each.module, each.qualname) for each in UPSTREAM_NAMES]
    assert len(keys) == len(set(keys))


SOURCE = """
from up.base import Parent, helper as alias
if True:
    def function(first, second=1, *, third): ...
try:
    LIMIT: int = 3
except ImportError:
    LIMIT = 0
class Child(Parent):
    own: int
    def method(self, x, y): ...
    def __init__(self, a): self.late = a
"""


@pytest.fixture
def fake_upstream(tmp_path):
    (tmp_path / "mod.py").write_text(SOURCE)
    (tmp_path / "base.py").write_text(
        "def helper(h): ...\nclass Parent:\n    def old(self, z): ...\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("qualname", "params"),
    [
        ("function", ("first", "second")), ("function", ("first", "second", "third")),
        ("function", ()), ("LIMIT", None), ("Child", ("a",)), ("Child.method", ("self", "x")),
        ("Child.own", None), ("Child.late", None), ("Child.old", ("z",)), ("alias", ("h",)),
    ],
)  # fmt: skip
def test_the_checker_finds(fake_upstream, qualname, params):
    assert complaint("up.mod", qualname, params, fake_upstream) is None


@pytest.mark.parametrize(
    ("module", "qualname", "params"),
    [
        ("up.gone", "function", None), ("up.mod", "gone", None), ("up.mod", "Child.gone", None),
        ("up.mod", "function", ("second",)), ("up.mod", "Child.method", ("x", "z")),
        ("up.mod", "LIMIT.x", None), ("up.mod", "LIMIT", ("x",)), ("up.mod", "Child.old", ("x",)),
    ],
)  # fmt: skip
def test_the_checker_complains(fake_upstream, module, qualname, params):
    assert complaint(module, qualname, params, fake_upstream)
