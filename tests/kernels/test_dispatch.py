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

NAMES = ["build_tree", "verify_tree", "sample_rows", "draft_topk", "verify_sampled_tree"]
# Compiles every kernel for a GPU that need not be there; prints one line per binary.
COMPILE = """
from importlib import import_module
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def build(module, kernel, arguments, constants, warps=4):
    kernel = getattr(import_module(f"respec_kernels.triton.{module}"), kernel)
    names = [each for each in kernel.arg_names if each not in constants]
    signature = dict(zip(names, arguments.split(), strict=True))
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    options = {"num_warps": warps}
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(kernel.__name__, len(binary.asm["cubin"]) > 0)

words = "*i64 " * 3 + "*u8 " + "*i64 " * 4
for mode in (0, 1, 2):
    build("build_tree", "_build_tree_kernel", words + "i32 i32",
          dict(TOPK=4, N=9, NODES=16, DOUBLINGS=2, MODE=mode, WORD=2, LENGTHS=256))
build("verify_tree", "_verify_tree_kernel", "*i32 " * 3 + "*i64 " * 5,
      dict(N=9, NODES=16, SLOTS=5, PATH=8, LEVELS=5, DOUBLINGS=2))

cut = dict(LIVE=True, NAMED=False, PARTS=16, BLOCK=4096)
row = " *i64 *i64 *i64 *fp32 *i32 *fp32 *fp32 *i64 *i64 *i64 *fp64 *i64 "
for logits, done in (("*fp32", 0), ("*bf16", 2)):
    build("sample_rows", "_pass_kernel", logits + row + "i32 i32 i32 i32",
          dict(PASS=done, SPLITS=9, **cut), warps=8)
for splits, filtered in ((1, False), (1, True), (9, True)):
    build("sample_rows", "_finish_kernel", "*bf16" + row + "*i64 *fp32 i32 i32 i32 i32",
          dict(FILTERED=filtered, INSPECTED=2 if splits > 1 else 0, SPLITS=splits, **cut), warps=8)
for splits in (1, 9):
    shape = dict(NAMED=True, K=5, LIST=8, SPLITS=splits)
    draft = "*bf16 *i64 *i64 *fp32 *i32 *i64 *i64 *fp32 *fp64 *i32 *fp32 *i64 i32 i32 i32"
    build("draft_topk", "_draft_topk_kernel", draft, dict(MAPPED=True, BLOCK=4096, **shape), 8)
build("draft_topk", "_merge_kernel", "*i64 *fp32 *fp32 *fp64 *i32 *fp32 *i64 i32",
      dict(PARTS=16, **shape))
walk = "*i32 *i32 *i32 *fp32 *i1 *i32 *i64 *i64 *fp32 *i64 *i64 *i64 *i64 *i1 i32 i32"
build("verify_sampled_tree", "_walk_kernel", walk, dict(ALL=True, ROOT_ONLY=True, N=9, SLOTS=5))
"""
COMPILED = [
    *["_build_tree_kernel"] * 3,
    "_verify_tree_kernel",
    *["_pass_kernel"] * 2,
    *["_finish_kernel"] * 3,
    *["_draft_topk_kernel"] * 2,
    "_merge_kernel",
    "_walk_kernel",
]


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
        return lambda *arguments, **named: None

    monkeypatch.setattr("respec_kernels.dispatch.implementation", spy)
    given: dict[bool, dict[str, torch.Tensor]] = {False: {}, True: {}}
    for each in inspect.signature(getattr(respec_kernels, name)).parameters.values():
        given[each.kind is each.KEYWORD_ONLY][each.name] = torch.zeros(1)
    getattr(respec_kernels, name)(*given[False].values(), **given[True])
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
    assert done.stdout.splitlines() == [f"{name} True" for name in COMPILED]
