"""What must not be in the repository, and what the documents promise."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from sglang_respec.refusals import SGLANG_VERSION

ROOT = Path(__file__).resolve().parents[2]
PICKLE_SUFFIXES = {".pkl", ".pickle", ".bin", ".pt", ".pth", ".npy", ".joblib"}
PICKLE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
# Spelt in halves, so that this file does not contain what it looks for.
REGISTRY_HOSTS = ("py" + "pi.org", "python" + "hosted.org", "download.py" + "torch.org")


def tracked() -> list[Path]:
    """Files git tracks; in an unpacked archive, every file outside dot folders."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode == 0 and listing.stdout:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        paths = [
            path for path in ROOT.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1])
        ]  # fmt: skip
    return sorted(path for path in paths if path.is_file())


def texts() -> dict[Path, str]:
    found = {}
    for path in tracked():
        try:
            found[path] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return found


def test_no_registry_host_and_no_machine_path():
    needles = [*REGISTRY_HOSTS]
    if len(ROOT.parts) > 2:
        needles.append(f"{ROOT}/")
    found = [
        f"{path.relative_to(ROOT)}: {needle}"
        for path, text in texts().items()
        for needle in needles
        if needle in text
    ]
    assert not found


def test_no_pickle_files():
    assert not [path for path in tracked() if path.suffix in PICKLE_SUFFIXES]


def test_no_unpickling_code():
    found = []
    for path in tracked():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if PICKLE_MODULES.intersection(name.split(".")[0] for name in names):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} imports {names}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} calls torch.load")
    assert not found


def distribution(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {distribution(line): line for line in lines if line and not line.startswith("#")}


def test_every_dependency_is_locked():
    project = pyproject()["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert not {distribution(each) for each in wanted} - set(locked())


def test_the_lock_pins_everything_and_names_no_source():
    for line in locked().values():
        assert re.match(r"[A-Za-z0-9._\[\],-]+==[^\s;]+( ; .*)?$", line), line


def test_one_sglang_version_everywhere():
    assert f"sglang=={SGLANG_VERSION}" in pyproject()["project"]["dependencies"]
    assert locked()["sglang"] == f"sglang=={SGLANG_VERSION}"


def documents() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


def test_there_are_documents():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} <= {
        path.name for path in documents()
    }


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith(("#", "mailto:")):
            continue
        assert (path.parent / link.split("#")[0]).exists(), link


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_documents_exist(path):
    """Inline code that looks like a path of this repository names a file that is there."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    folders = r"(?:sglang_respec|kernels|server|scripts|tests|docs)"
    for name in re.findall(rf"`({folders}/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_tests_named_in_documents_exist():
    source = "\n".join(each.read_text(encoding="utf-8") for each in (ROOT / "tests").rglob("*.py"))
    written = set(re.findall(r"def (test_\w+)\(", source))
    for path in documents():
        named = set(re.findall(r"`(test_\w+)`", path.read_text(encoding="utf-8")))
        assert named <= written, path


def make_verbs() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", text, flags=re.MULTILINE))


def test_commands_in_the_documents_exist():
    for path in documents():
        text = path.read_text(encoding="utf-8")
        code = "\n".join(re.findall(r"`+([^`]+)`+", text))
        assert set(re.findall(r"(?:^|\n|\$ )make ([a-z][a-z-]*)", code)) <= make_verbs(), path


def test_the_makefile_has_its_verbs():
    assert make_verbs() >= {
        "help", "install", "demo", "serve", "check", "test", "test-fast", "bench", "models",
        "clean",
    }  # fmt: skip


def test_continuous_integration_calls_make():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text(encoding="utf-8")
