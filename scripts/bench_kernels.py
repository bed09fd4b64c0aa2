"""Times sampled verification against SGLang's own path for the same result, in one run.

    python scripts/bench_kernels.py                # CPU, the references, small shapes
    python scripts/bench_kernels.py --device cuda  # the Triton kernels, all shapes

Ours is verify_sampled_tree in both schedules; SGLang's path is softmax, renormalisation where
requests filter, a zero tensor for the draft's probabilities, and tree sampling. On a CPU SGLang has
no such kernels and its rule is rendered in PyTorch, labelled so. The kernels' own tests must pass
first, and each cell's two schedules must agree. Bytes are those of the rows a schedule must read;
GB/s and the fraction of copy bandwidth follow from them. Writes docs/results, prints the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from bench_timing import ROOT, Call, machine, state, time_calls, time_launches

from respec_kernels import VerifiedTrees, choose_schedule, sample_rows, verify_sampled_tree
from respec_kernels.schedule import CPU, GPU, Schedule

sys.path.append(str(ROOT / "tests" / "kernels"))
cases = import_module("tree_cases")

GATES = {
    "cpu": ["tests/kernels/test_sample_rows.py", "tests/kernels/test_verify_sampled_tree.py"],
    "cuda": ["tests/gpu/test_sampling_kernels.py"],
}
SHAPES = {  # batches, nodes, vocabularies
    "cpu": ((1, 8), (4, 16), (512, 32_000)),
    "cuda": ((1, 8, 64, 256), (4, 16, 32), (32_000, 151_936)),
}
TREES = {4: (2, 2), 16: (4, 4), 32: (8, 5)}  # nodes: (topk, steps)
CHILD_IS_RIGHT = 0.7  # chance that a node with children has the target's token among them
TEMPERATURE, TOP_K, TOP_P, TOP_K_ALL = 0.8, 50, 0.95, 1 << 30


@dataclass(frozen=True)
class Cell:
    """One shape's inputs; accepted lengths follow from where the drafts are right."""

    arguments: dict[str, Any]  # of verify_sampled_tree
    batch: int
    nodes: int
    vocabulary: int
    filtered: bool

    @property
    def row_bytes(self) -> int:
        return self.vocabulary * int(self.arguments["logits"].element_size())


def run_gate(device: str) -> None:
    """Stop unless the kernels' own tests pass on this device."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pytest", "-q", *GATES[device]]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit("The kernels' tests fail, so nothing is timed: repair them first.")


def make_cell(
    batch: int, nodes: int, vocabulary: int, filtered: bool, dtype: torch.dtype, device: str
) -> Cell:
    """Draft random trees, sample every node, and put the target's token among its children."""
    generator = torch.Generator(device).manual_seed(nodes + batch)
    topk, steps = TREES[nodes]
    trees = cases.draft(batch, [0] * batch, topk, steps, nodes).trees
    rows = batch * nodes
    logits = torch.randn(rows, vocabulary, generator=generator, device=device) * 3
    depths = torch.tensor([tree.depths() for tree in trees], device=device)

    def each(value: float, kind: torch.dtype) -> torch.Tensor:
        return torch.full((batch,), value, dtype=kind, device=device)

    sampling = {
        "positions": (512 + depths).flatten(),
        "temperatures": each(TEMPERATURE, torch.float32),
        "top_ks": each(TOP_K if filtered else TOP_K_ALL, torch.int32),
        "top_ps": each(TOP_P if filtered else 1.0, torch.float32),
        "min_ps": each(0.0, torch.float32),
        "seeds": torch.arange(batch, device=device),
    }
    logits = logits.to(dtype)
    tokens, _ = sample_rows(logits, requests=None, filtered=filtered, **sampling)
    wanted = tokens.view(batch, nodes).tolist()
    right = (torch.rand(batch, nodes, generator=generator, device=device) < CHILD_IS_RIGHT).tolist()
    candidates = [[vocabulary - 1 - node for node in range(nodes)] for _ in trees]
    for request, tree in enumerate(trees):
        for node in range(nodes):
            children = tree.children(node)
            if children and right[request][node]:
                candidates[request][children[node % len(children)]] = wanted[request][node]
    links = {
        "candidates": candidates,
        "retrieve_next_token": [tree.first_children() for tree in trees],
        "retrieve_next_sibling": [tree.next_siblings() for tree in trees],
    }
    tables = {name: cases.table(values, nodes, device) for name, values in links.items()}
    tables["retrieve_index"] = torch.arange(rows, device=device).view(batch, nodes)
    arguments = {"logits": logits, **tables, **sampling}
    return Cell(
        arguments | {"filtered": filtered, "max_depth": steps + 1},
        batch, nodes, vocabulary, filtered,
    )  # fmt: skip


def sglang_functions(device: str) -> tuple[Any, Any, Any, Any, str]:
    """Return softmax, top-k and top-p renormalisation, tree sampling, and a word on them."""
    if device == "cuda":
        renorm = import_module("sglang.kernels.ops.sampling.renorm")
        return (
            import_module("sglang.kernels.ops.sampling").softmax,
            renorm.top_k_renorm_prob,
            renorm.top_p_renorm_prob,
            import_module(
                "sglang.kernels.ops.speculative.verify_sampling"
            ).tree_speculative_sampling_target_only,
            "SGLang's CUDA path",
        )
    ours = import_module("sglang_respec.upstream.portable.sampling_ops")

    def softmax(logits: torch.Tensor, temperatures: torch.Tensor) -> torch.Tensor:
        return torch.softmax(logits / temperatures, dim=-1)

    return (
        softmax,
        ours.top_k_renorm_prob,
        ours.top_p_renorm_prob,
        ours.tree_speculative_sampling_target_only,
        "a PyTorch rendering of SGLang's path, which has no CPU kernels",
    )


def sglang_path(cell: Cell, functions: tuple[Any, ...]) -> Call:
    """Return what SGLang's eagle_sample does with these logits."""
    softmax, top_k_renorm, top_p_renorm, tree_sampling = functions[:4]
    a, n = cell.arguments, cell.nodes
    logits = a["logits"].float()  # SGLang's logits are float32
    device = logits.device

    def run() -> object:
        predicts = torch.zeros(cell.batch * n, dtype=torch.int32, device=device)
        accept_index = torch.full(
            (cell.batch, a["max_depth"]), -1, dtype=torch.int32, device=device
        )
        accept_num = torch.empty(cell.batch, dtype=torch.int32, device=device)
        temperatures = torch.repeat_interleave(a["temperatures"][:, None], n, dim=0)
        probs = softmax(logits, temperatures=temperatures)
        if cell.filtered:
            probs = top_k_renorm(probs, torch.repeat_interleave(a["top_ks"], n, dim=0))
            probs = top_p_renorm(probs, torch.repeat_interleave(a["top_ps"], n, dim=0))
        probs = probs.reshape(cell.batch, n, -1)
        tree_sampling(
            predicts=predicts,
            accept_index=accept_index,
            accept_token_num=accept_num,
            candidates=a["candidates"],
            retrive_index=a["retrieve_index"],
            retrive_next_token=a["retrieve_next_token"],
            retrive_next_sibling=a["retrieve_next_sibling"],
            uniform_samples=torch.rand(cell.batch, n, device=device),
            uniform_samples_for_final_sampling=torch.rand(cell.batch, device=device),
            target_probs=probs,
            draft_probs=torch.zeros_like(probs),
            threshold_single=1.0,
            threshold_acc=1.0,
            deterministic=True,
        )
        return predicts

    return run


def check_schedules(cell: Cell) -> VerifiedTrees:
    """Return what is committed, once both schedules have returned it."""
    nodes = verify_sampled_tree(**cell.arguments, schedule="nodes")
    levels = verify_sampled_tree(**cell.arguments, schedule="levels")
    for name in ("predicts", "accept_index", "accept_token_num", "row_failed"):
        if not torch.equal(getattr(nodes, name), getattr(levels, name)):
            raise SystemExit(f"The schedules disagree in {name}: nothing is timed.")
    return nodes


def bench_cell(
    cell: Cell, functions: tuple[Any, ...], copy_bytes_per_s: float, device: str, samples: int
) -> dict[str, Any]:
    committed = check_schedules(cell).accept_token_num + 1
    length = committed.double().mean().item()
    must_read: dict[Schedule, int] = {
        "nodes": cell.batch * cell.nodes * cell.row_bytes,
        "levels": int(committed.sum()) * cell.row_bytes,
    }
    chosen = choose_schedule(
        cell.batch, cell.nodes, cell.row_bytes, cell.arguments["max_depth"],
        GPU if device == "cuda" else CPU, length,
    )  # fmt: skip
    row: dict[str, Any] = {
        "batch": cell.batch, "tree_nodes": cell.nodes, "vocabulary": cell.vocabulary,
        "filtered": cell.filtered, "accepted_length": round(length, 2), "auto": chosen,
        "sglang": {"call": time_calls(sglang_path(cell, functions), device, samples)},
    }  # fmt: skip
    for schedule, size in must_read.items():

        def ours(schedule: Schedule = schedule) -> object:
            return verify_sampled_tree(**cell.arguments, schedule=schedule)

        times = {"call": time_calls(ours, device, samples)}
        if device == "cuda":
            times["device"] = time_launches(ours, samples, launches=10)
        rate = size / times.get("device", times["call"])["median_us"] * 1e6
        row[schedule] = {
            **times,
            "bytes": size,
            "gb_per_s": round(rate / 1e9, 2),
            "fraction_of_copy": round(rate / copy_bytes_per_s, 3),
            "times_sglang": round(
                row["sglang"]["call"]["median_us"] / times["call"]["median_us"], 2
            ),
        }
    return row


def copy_bandwidth(device: str) -> float:
    """Return the bytes per second that a large copy moves: each byte read and written."""
    source = torch.zeros((1 << 30 if device == "cuda" else 1 << 27), dtype=torch.uint8).to(device)
    target = torch.empty_like(source)
    best = time_calls(lambda: target.copy_(source), device, 20)["min_us"]
    return 2 * source.nbytes / best * 1e6


def print_row(row: dict[str, Any]) -> None:
    parts = [
        f"{row['batch']:>4}{row['tree_nodes']:>4}{row['vocabulary']:>8}"
        f"{'  filtered' if row['filtered'] else '  plain   '}{row['accepted_length']:>6}"
        f"  sglang {row['sglang']['call']['median_us']:>10.0f}"
    ]
    for schedule in ("nodes", "levels"):
        found = row[schedule]
        parts.append(
            f"{schedule} {found['call']['median_us']:>9.0f} ({found['times_sglang']:.2f}x, "
            f"{found['gb_per_s']:.2f} GB/s, {found['fraction_of_copy']:.3f})"
        )
    print("  ".join(parts) + f"  auto: {row['auto']}", flush=True)


def main() -> None:
    """Gate, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--nodes", type=int, nargs="+", choices=sorted(TREES))
    parser.add_argument("--vocabularies", type=int, nargs="+")
    parser.add_argument("--samples", type=int, default=30, help="timed samples per call")
    parser.add_argument("--out", type=Path, help="default: docs/results/kernels_<device>.json")
    options = parser.parse_args()
    device = options.device
    run_gate(device)
    torch.set_num_threads(1)
    batches, nodes, vocabularies = SHAPES[device]
    functions = sglang_functions(device)
    bandwidth = copy_bandwidth(device)
    print(f"microseconds, median; baseline: {functions[4]}; copy {bandwidth / 1e9:.1f} GB/s")
    rows = []
    for vocabulary in options.vocabularies or vocabularies:
        for n in options.nodes or nodes:
            for batch in options.batches or batches:
                for filtered in (False, True):
                    dtype = getattr(torch, options.dtype)
                    cell = make_cell(batch, n, vocabulary, filtered, dtype, device)
                    rows.append(bench_cell(cell, functions, bandwidth, device, options.samples))
                    print_row(rows[-1])
    out = options.out or ROOT / "docs" / "results" / f"kernels_{device}.json"
    report = {
        "what": "verification of sampled trees, microseconds; the kernels' tests passed first",
        "baseline": functions[4],
        "logits": options.dtype,
        "copy_gb_per_s": round(bandwidth / 1e9, 2),
        "machine": machine(device, "scripts/bench_kernels.py") | state(),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {out.relative_to(ROOT) if out.is_relative_to(ROOT) else out}")


if __name__ == "__main__":
    main()
