"""Derive the two profiles that the simulator ships with. Neither was measured stage by stage.

gpu_llama8b: from the step times published in vLLM pull request 32374 (Llama 8B with EAGLE, K
draft tokens, milliseconds). cpu_demo_pair: from docs/results/serving_cpu.json. What the sources do
not say is assumed, and each assumption stands here and in the profile's `source`.

    python scripts/build_profiles.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from sglang_respec.core import SpeculationConfig
from sglang_respec.planner.grid import Grid, locate
from sglang_respec.planner.profile import HeldOut, Profile, ProfileKey

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "sglang_respec" / "planner" / "profiles"

# vLLM pull request 32374: step time in ms by batch size, for K = 0 (plain), 1, 3, 5.
PUBLISHED_MS = {
    1: {0: 6.52, 1: 7.37, 3: 8.84, 5: 10.33},
    64: {0: 7.77, 1: 9.66, 3: 13.50, 5: 16.83},
    256: {0: 14.49, 1: 27.14, 3: 41.85, 5: 57.40},
}
# There too: accepted by position, and the speed-up of K = 3 at batch size 16.
PUBLISHED_ACCEPTED = (0.681, 0.391, 0.204)
SPEEDUP_16 = 1.65
DRAFT_SHARE = 0.107  # one drafter forward over one plain step: (8.84 - 7.37) / 2 ms of 6.52 ms
MS_PER_ROW = (57.40 - 27.14) / (1536 - 512)  # beyond 256 rows, from K = 1 to K = 5 at 256
KV_BYTES = 32 * 8 * 128 * 2 * 2  # per token: layers, KV heads, width, K and V, bf16
BANDWIDTH = 3.35e12  # bytes per second: an H100 SXM's; the source names no GPU
PUBLISHED_CONTEXT = 256.0  # tokens; the source names none
CONTEXTS = (256.0, 2048.0, 8192.0)
SWITCH_S = 50e-6  # another graph set is chosen by a pointer; an assumption

CPU_DRAFT_SHARE = 701184 / 3644608  # the pair's parameters: drafter over target
CPU_CONTEXT = 128.0


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, profile in (("gpu_llama8b", gpu_profile()), ("cpu_demo_pair", cpu_profile())):
        profile.save(FOLDER / f"{name}.json")
        print(f"{name}: relative error at held-out points {profile.relative_error}")


def gpu_profile() -> Profile:
    sizes = tuple(PUBLISHED_MS)
    profile = Profile(
        key=ProfileKey("Llama 8B", "EAGLE", "GPU", "tp=1", "bfloat16", (("vllm", "PR 32374"),)),
        kind="derived",
        source=(
            "Step times published in vLLM pull request 32374, reproduced exactly for chains of 1, "
            "3 and 5 at batch sizes 1, 64 and 256. Assumed: one drafter forward costs 10.7 % of a "
            "plain step with as many rows; nodes beyond 6 cost what the last published ones add; "
            "context costs its KV bytes at 3.35 TB/s, a 32nd of it per drafter forward; the "
            "published context is 256 tokens; a switch costs 50 microseconds. Held out: K = 3 at "
            "batch size 16, from its published speed-up."
        ),
        stages={
            "plain": _grid((1,), sizes, lambda _, b: PUBLISHED_MS[b][0], share=1.0),
            "verify": _grid((1, 2, 4, 6), sizes, _gpu_verify_ms, share=1.0),
            "draft_step": _grid((1, 2, 4, 8), sizes, lambda k, b: _draft_ms(k * b), share=1 / 32),
            "extend": _grid(
                (1, 2, 4, 6, 16, 64, 512), sizes, lambda n, b: _draft_ms(n * b), share=1 / 32
            ),
        },
        switch_s=SWITCH_S,
    )
    chain = SpeculationConfig(3, 1, 4)
    plain_s = profile.round_seconds(SpeculationConfig(0, 1, 1), 16, PUBLISHED_CONTEXT)
    seconds = plain_s * (1.0 + sum(PUBLISHED_ACCEPTED)) / SPEEDUP_16
    held_out = HeldOut(chain, 16.0, PUBLISHED_CONTEXT, seconds)
    return Profile(**{**vars(profile), "held_out": (held_out,)})


def _draft_ms(rows: float) -> float:
    """One drafter forward over so many rows."""
    plain = {size: times[0] for size, times in PUBLISHED_MS.items()}
    sizes = tuple(float(size) for size in plain)
    if rows > sizes[-1]:
        return DRAFT_SHARE * (plain[256] + MS_PER_ROW * (rows - sizes[-1]))
    i, w = locate(sizes, rows)
    times = list(plain.values())
    return DRAFT_SHARE * (times[i] + w * (times[i + 1] - times[i]))


def _gpu_verify_ms(nodes: int, batch: int) -> float:
    """What the published round leaves once its drafter forwards are taken away."""
    if nodes == 1:
        return PUBLISHED_MS[batch][0]
    steps = nodes - 1
    drafts = (steps - 1) * _draft_ms(batch) + _draft_ms(nodes * batch)
    return PUBLISHED_MS[batch][steps] - drafts


def _grid(widths, sizes, milliseconds, share) -> Grid:  # type: ignore[no-untyped-def]
    """share: of the context's KV bytes that this stage reads."""
    per_token_s = share * KV_BYTES / BANDWIDTH
    return Grid.from_measurements(
        widths,
        sizes,
        CONTEXTS,
        [
            [
                [
                    1e-3 * milliseconds(w, b) + per_token_s * b * (c - PUBLISHED_CONTEXT)
                    for c in CONTEXTS
                ]
                for b in sizes
            ]
            for w in widths
        ],
    )


def cpu_profile() -> Profile:
    """Two unknowns per batch size, verify of 6 and of 16 nodes, from two measured rounds.

    With one drafter forward costing a share f of the target's with as many rows, a round of
    (s, k, n) takes (s - 1) f V(k) + (1 + f) V(n); V(1) is the plain step and V is linear between.
    """
    rounds = _measured_rounds()
    f = CPU_DRAFT_SHARE
    sizes, verify = [], []
    for plain, chain, tree in zip(rounds["plain"], rounds["chain"], rounds["tree"], strict=True):
        one = plain[1]
        six = (chain[1] - 4 * f * one) / (1 + f)
        four = one + 3 / 5 * (six - one)
        sixteen = (tree[1] - 4 * f * four) / (1 + f)
        sizes.append(round(plain[0], 2))
        verify.append((one, six, sixteen))
    nodes = (1.0, 6.0, 16.0)

    def target_s(width: float, b: int) -> float:
        i, w = locate(nodes, width)
        return verify[b][i] + w * (verify[b][i + 1] - verify[b][i])

    def grid(widths: tuple[int, ...], share: float) -> Grid:
        return Grid.from_measurements(
            widths,
            sizes,
            (CPU_CONTEXT,),
            [[[share * target_s(w, b)] for b in range(len(sizes))] for w in widths],
        )

    return Profile(
        key=ProfileKey(
            "bundled target", "bundled drafter", "CPU, 2 cores", "tp=1", "float32",
            (("sglang", "0.5.23"),),
        ),
        kind="derived",
        source=(
            "Throughput and accepted length of docs/results/serving_cpu.json (plain, 5,1,6 and "
            "5,4,16 at four batch sizes), turned into round times by the measured mean "
            "concurrency. Assumed: a drafter forward costs the parameters' share, 19 %, of the "
            "target's; nothing else is added; context costs nothing. Prefill is in the rounds."
        ),
        stages={
            "plain": grid((1,), 1.0),
            "verify": grid((1, 6, 16), 1.0),
            "draft_step": grid((1, 4, 6), f),
            "extend": grid((1, 6, 16, 512), f),
        },
    )  # fmt: skip


def _measured_rounds() -> dict[str, list[tuple[float, float]]]:
    """{plain, chain, tree}: (mean concurrency, seconds of a round) per batch size, medians."""
    document = json.loads((ROOT / "docs/results/serving_cpu.json").read_text(encoding="utf-8"))
    names = {"stock plain": "plain", "respec (5,1,6)": "chain", "respec (5,4,16)": "tree"}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in names.values()}
    for server, name in names.items():
        for size in document["load"]["batches"]:
            runs = [
                run
                for run in document["measurements"]
                if run["server"] == server and run["batch"] == size
            ]
            seconds = [
                run["mean_concurrency"] * (run["accepted_length"] or 1.0) / run["tokens_per_s"]
                for run in runs
            ]
            concurrency = statistics.median(run["mean_concurrency"] for run in runs)
            rounds[name].append((concurrency, statistics.median(seconds)))
    return rounds


if __name__ == "__main__":
    main()
