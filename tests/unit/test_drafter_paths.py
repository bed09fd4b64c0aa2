"""A push may name files under one folder, and nothing outside it by any road."""

from __future__ import annotations

import os

import httpx
import pytest
from drafter_toys import make_file
from local_server import LocalServer, refused, serve_local, unharmed

from sglang_respec.errors import RespecError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("paths")
    inside = tmp_path / "drafters"
    inside.mkdir()
    (inside / "good.safetensors").write_bytes(make_file(1.0))
    (inside / "sub").mkdir()
    (tmp_path / "outside.safetensors").write_bytes(make_file(2.0))
    (inside / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (inside / "inner.safetensors").symlink_to("good.safetensors")
    (inside / "loop.safetensors").symlink_to("loop.safetensors")
    os.mkfifo(inside / "pipe")
    return inside


@pytest.fixture(scope="module")
def shared(folder):
    with serve_local(drafter_dir=str(folder)) as server:
        yield server


@pytest.fixture
def server(shared):
    shared.engine.reset(1)
    return shared


def push_path(server: LocalServer, path: str) -> httpx.Response:
    url = f"{server.url}/update_drafter"
    return httpx.post(url, json={"path": path}, timeout=30, trust_env=False)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("../outside.safetensors", 403, "outside"), ("link.safetensors", 403, "outside"),
        ("sub/../../outside.safetensors", 403, "outside"), ("/etc/passwd", 403, "outside"),
        ("loop.safetensors", 403, "outside"), ("pipe", 403, "outside"), ("sub", 403, "outside"),
        (".", 403, "outside"), ("a\0b", 403, "outside"), ("none.safetensors", 404, "no_file"),
        ("", 400, "bad_request"), ("~/x", 404, "no_file"), ("x" * 3000, 403, "outside"),
    ],
)  # fmt: skip
def test_paths_out_of_bounds(server, path, status, code):
    refused(push_path(server, path), status, code)
    unharmed(server)


@pytest.mark.parametrize(
    "path", ["good.safetensors", "inner.safetensors", "sub/../good.safetensors"]
)
def test_paths_within_bounds(server, folder, path):
    assert push_path(server, path).json()["applied"]
    assert push_path(server, str(folder / path)).json()["status"] == "already_serving"


def test_paths_are_off_unless_a_folder_is_named():
    with serve_local() as server:
        refused(push_path(server, "x"), 403, "no_folder")


def test_a_folder_that_is_not_there_stops_the_start(tmp_path):
    with (
        pytest.raises(RespecError, match="drafter_dir"),
        serve_local(drafter_dir=str(tmp_path / "none")),
    ):
        pass
