"""One place picks the implementation, and a machine with no GPU never pays for Triton."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest
import torch

import respec_kernels
from respec_kernels import TreeMaskMode, implementation

NAMES = ["build_tree", "verify_tree"]
# Compiles both kernels for a GPU that need not be there; prints one line per binary.
COMPILE = """
from importlib import import_module
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def build(name, pointers, scalars, constants):
    kernel = getattr(import_module(f"respec_kernels.triton.{name}"), f"_{name}_kernel")
    names = [each for each in kernel.arg_names if each not in constants]
    signature = dict(zip(names, pointers + scalars, strict=True))
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    print(name, len(binary.asm["cubin"]) > 0)

words = ["*i64"] * 3 + ["*u8"] + ["*i64"] * 4
for mode in (0, 1, 2):
    build("build_tree", words, ["i32", "i32"],
          dict(TOPK=4, N=9, NODES=16, DOUBLINGS=2, MODE=mode, WORD=2, LENGTHS=256))
build("verify_tree", ["*i32"] * 3 + ["*i64"] * 5, [],
      dict(N=9, NODES=16, SLOTS=5, PATH=8, LEVELS=5, DOUBLINGS=2))
"""


@pytest.mark.parametrize("name", NAMES)
def test_both_implementations_have_one_signature(name: str) -> None:
    public, on_cpu, on_gpu = (
        inspect.signature(function)
        for function in (
            getattr(respec_kernels, name),
            implementation(name, False),
            implementation(name, True),
        )
    )
    assert public == on_cpu == on_gpu


@pytest.mark.parametrize("name", NAMES)
def test_a_cpu_tensor_goes_to_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(kernel: str, on_gpu: bool) -> object:
        asked.append((kernel, on_gpu))
        return lambda *arguments: None

    monkeypatch.setattr("respec_kernels.dispatch.implementation", spy)
    count = len(inspect.signature(getattr(respec_kernels, name)).parameters)
    getattr(respec_kernels, name)(*[torch.zeros(1)] * count)
    assert asked == [(name, False)]


def test_tree_mask_modes_are_plain_integers() -> None:
    assert [int(mode) for mode in TreeMaskMode] == [0, 1, 2]


def test_importing_the_package_does_not_import_triton() -> None:
    code = "import sys, respec_kernels; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu compiles and runs them")
def test_the_kernels_compile_for_a_gpu(tmp_path) -> None:
    """The interpreter accepts more than the compiler does."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["build_tree True"] * 3 + ["verify_tree True"]
