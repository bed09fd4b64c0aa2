"""Times build_tree and verify_tree, after checking that they are right.

    python scripts/bench_tree_kernels.py              # the PyTorch path, one thread
    python scripts/bench_tree_kernels.py --device cuda # the Triton path, and SGLang's own if there

Needs torch and triton, and ``kernels`` on PYTHONPATH where the package is not installed. Writes
one JSON file to docs/results and prints the same as a table. On a GPU, ``device`` is the time of
one launch inside a CUDA graph of many, ``call`` that of an ordinary call from Python.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from bench_timing import ROOT, Call, machine, state, timings

from respec_kernels import TreeMaskMode, build_tree, packed_bytes, verify_tree

sys.path.append(str(ROOT / "tests" / "kernels"))
cases = import_module("tree_cases")

BATCHES = (1, 8, 64, 256)
TREES = {  # nodes: (topk, steps)
    "chain": {4: (1, 3), 16: (1, 15), 32: (1, 31)},
    "tree": {4: (2, 2), 16: (4, 4), 32: (8, 5)},
}
SEQ_LEN = 512


def sglang_kernels(device: str) -> tuple[Any, str]:
    """Return SGLang's own CUDA kernels and a word on them, or None and why there is no baseline."""
    if device != "cuda":
        return None, "SGLang has these for CPUs only in a build of sgl_kernel of its own"
    try:
        return import_module("sglang.kernels.ops.speculative.tree"), "SGLang's CUDA kernel"
    except ImportError as error:
        return None, f"SGLang is not installed here ({error})"


def build_bytes(batch: int, nodes: int, topk: int, steps: int, mode: TreeMaskMode) -> int:
    """Return the bytes build_tree must move: inputs once, outputs once."""
    slots = topk * (steps - 1) + 1 if steps > 1 else 0
    read = 8 * batch * (nodes - 1 + min(slots, nodes - 1) + 1)
    packed = mode == TreeMaskMode.QLEN_ONLY_BITPACKING
    mask = batch * nodes * (packed_bytes(nodes) if packed else nodes)
    return read + mask + 8 * batch * nodes * 4


def verify_bytes(batch: int, nodes: int, slots: int) -> int:
    """Return the bytes verify_tree must move; at most ``slots`` nodes are visited."""
    return 8 * batch * nodes * 4 + 8 * batch * slots + 4 * batch * (2 * slots + 1)


def bench_build(
    batch: int, nodes: int, shape: str, mode: TreeMaskMode, device: str, samples: int, sglang: Any
) -> dict[str, Any]:
    topk, steps = TREES[shape][nodes]
    drafted = cases.draft(batch + nodes, [SEQ_LEN] * batch, topk, steps, nodes)
    cases.check_build(build_tree, drafted, mode, device)
    ours = cases.build_arguments(drafted, mode, device)
    calls: dict[str, Call] = {"ours": lambda: build_tree(**ours)}
    if sglang is not None:
        theirs = list(cases.build_arguments(drafted, mode, device).values())
        calls["sglang"] = lambda: sglang.build_tree_kernel_efficient(*theirs)
    return {
        "kernel": "build_tree",
        "mask": mode.name,
        "bytes": build_bytes(batch, nodes, topk, steps, mode),
        "topk": topk,
        "steps": steps,
        "times": timings(calls, device, samples),
    }


def bench_verify(
    batch: int, nodes: int, shape: str, device: str, samples: int, sglang: Any
) -> dict[str, Any]:
    topk, steps = TREES[shape][nodes]
    trees = cases.draft(batch + nodes, [0] * batch, topk, steps, nodes).trees
    # Half of the nodes agree with the target, as at a healthy acceptance rate.
    walked = cases.agreeing(trees, slots=steps + 1)
    generator = torch.Generator().manual_seed(nodes)
    agrees = torch.rand(batch, nodes, generator=generator) < 0.5
    targets = torch.where(agrees, torch.tensor(walked.targets), -5).tolist()
    case = cases.Verifiable(trees, walked.candidates, targets, steps + 1, topk)
    cases.check_verify(verify_tree, case, device)
    ours = cases.verify_arguments(case, device)
    calls: dict[str, Call] = {"ours": lambda: verify_tree(**ours)}
    if sglang is not None:
        named = cases.verify_arguments(case, device)
        del named["topk"]
        theirs = list(named.values())
        calls["sglang"] = lambda: sglang.verify_tree_greedy(*theirs)
    return {
        "kernel": "verify_tree",
        "mask": "-",
        "bytes": verify_bytes(batch, nodes, steps + 1),
        "topk": topk,
        "steps": steps,
        "times": timings(calls, device, samples),
    }


def print_row(row: dict[str, Any]) -> None:
    parts = [
        f"{row['kernel']:<12}{row['shape']:<6}{row['mask']:<21}{row['batch']:>4}{row['nodes']:>4}"
        f"{row['bytes']:>9}"
    ]
    for who, kinds in row["times"].items():
        for kind, times in kinds.items():
            parts.append(
                f"{who} {kind} {times['median_us']:.1f} "
                f"({times['p25_us']:.1f}..{times['p75_us']:.1f})"
            )
    print("  ".join(parts), flush=True)


def main() -> None:
    """Check, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--samples", type=int, default=300, help="timed samples per row")
    parser.add_argument("--out", type=Path, help="default: docs/results/tree_kernels_<device>.json")
    options = parser.parse_args()
    device = options.device
    torch.set_num_threads(1)
    sglang, baseline = sglang_kernels(device)
    masks = [TreeMaskMode.QLEN_ONLY]
    if device == "cuda":
        masks += [TreeMaskMode.FULL_MASK, TreeMaskMode.QLEN_ONLY_BITPACKING]
    print(
        f"microseconds, median (p25..p75); baseline: {baseline if sglang else f'none: {baseline}'}"
    )
    rows = []
    for shape, sizes in TREES.items():
        for nodes in sizes:
            for batch in BATCHES:
                where = {"shape": shape, "batch": batch, "nodes": nodes}
                found = [
                    bench_build(batch, nodes, shape, mask, device, options.samples, sglang)
                    for mask in masks
                ]
                found.append(bench_verify(batch, nodes, shape, device, options.samples, sglang))
                for row in found:
                    rows.append(where | row)
                    print_row(rows[-1])
    out = options.out or ROOT / "docs" / "results" / f"tree_kernels_{device}.json"
    report = {
        "what": "build_tree and verify_tree, microseconds; every row checked before it was timed",
        "baseline": baseline if sglang else f"none: {baseline}",
        "machine": machine(device, "scripts/bench_tree_kernels.py") | state(),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {out.relative_to(ROOT) if out.is_relative_to(ROOT) else out}")


if __name__ == "__main__":
    main()
