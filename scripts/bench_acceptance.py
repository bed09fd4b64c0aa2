"""Measures accepted length by temperature: SGLang's drafting and verification against ours.

Same target, same drafter, same prompts, same seeds; only the rule differs. SGLang drafts what is
likeliest and accepts by coins; here drafter and target share the noise that picks the token.
Accepted length is tokens committed per verify, bonus included: a count, which no other load on
the machine changes. Each round has other seeds. The entropy beside it is the mean of
-log p(token) over the sampled tokens, which says how much there is to guess.

SGLang has no CPU kernel for its tree sampling: on a CPU its row is that rule in PyTorch
(`sglang_respec/upstream/portable/sampling_ops.py`); on a GPU it is SGLang's own kernel.

    python scripts/bench_acceptance.py                   # about 10 minutes on two cores
    python scripts/bench_acceptance.py --update-readme
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_report
from bench_report import Bars, Spread, markdown_table, plot_grouped_bars
from bench_servers import Pool, ServerSpec, speculation
from bench_serving_run import Prompts
from rollouts import Batch, generate
from tqdm import tqdm

from respec_server.bundled import demo_models

MARKERS = ("<!-- acceptance:begin -->", "<!-- acceptance:end -->")
SHAPES = {"chain (5,1,6)": (5, 1, 6), "tree (5,4,16)": (5, 4, 16)}
RULES = {"SGLang's rule": True, "coupled": False}  # stock or not
COLOURS = {
    "chain (5,1,6), SGLang's rule": "#b9bec5",
    "chain (5,1,6), coupled": "#6aa7e0",
    "tree (5,4,16), SGLang's rule": "#8d949e",
    "tree (5,4,16), coupled": "#1c4f88",
}

Lengths = dict[str, dict[float, list[float]]]  # by server and temperature, one per round
Entropies = dict[float, float]  # nats per token, by temperature


def main() -> None:
    options = parse_options()
    facts = {"machine": bench_report.machine_facts(), "versions": bench_report.version_facts()}
    specs = server_specs(options)
    with tempfile.TemporaryDirectory() as logs, Pool(1, Path(logs)) as pool:
        entropies: Entropies = {}
        lengths = {
            spec.name: measure(pool.url(spec), spec.name, options, entropies) for spec in specs
        }
    result = {
        "what": "accepted length by temperature, SGLang's rule against coupled sampling",
        "command": bench_report.public_text(shlex.join(["python", *sys.argv])),
        **facts,
        "load": {
            "prompts": options.prompts,
            "max_new_tokens": options.tokens,
            "rounds": options.rounds,
            "running_at_a_time": options.concurrency,
        },
        "servers": [spec.facts() for spec in specs],
        "entropy_nats_per_token": {f"{t:g}": round(each, 4) for t, each in entropies.items()},
        "accepted_length": {
            name: {f"{t:g}": [round(each, 4) for each in rounds] for t, rounds in row.items()}
            for name, row in lengths.items()
        },
    }
    path = options.out or bench_report.result_path("acceptance")
    bench_report.write_json(path, result)
    image = path.with_suffix(".png")
    plot(image, lengths, result)
    text = section(lengths, result)
    print("\n" + text + f"\n\n{path.name} {image.name}")
    if options.update_readme:
        shown = image.resolve().relative_to(bench_report.ROOT)
        body = f"{text}\n\n![Accepted length by temperature]({shown})"
        bench_report.insert_section(bench_report.README, body, MARKERS)


def parse_options() -> argparse.Namespace:
    target, drafter = demo_models()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", default=str(target))
    parser.add_argument("--drafter-path", default=str(drafter))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.6, 1.0, 1.3, 1.7])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="at most, of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--out", type=Path, help="default: docs/results/acceptance_*.json")
    parser.add_argument("--update-readme", action="store_true")
    return parser.parse_args()


def server_specs(options: argparse.Namespace) -> list[ServerSpec]:
    common = (
        *("--model-path", options.model_path, "--dtype", options.dtype),
        *("--max-running-requests", str(options.concurrency)),
    )
    return [
        ServerSpec(
            f"{shape}, {rule}", stock, (*common, *speculation(options.drafter_path, *numbers))
        )
        for shape, numbers in SHAPES.items()
        for rule, stock in RULES.items()
    ]


def measure(
    url: str, name: str, options: argparse.Namespace, entropies: Entropies
) -> dict[float, list[float]]:
    prompts = Prompts(options.model_path)(options.prompts)
    lengths: dict[float, list[float]] = {}
    visits = [(t, each) for t in options.temperatures for each in range(options.rounds)]
    for temperature, number in tqdm(visits, desc=name, unit="load"):
        sampling = [
            {
                "temperature": temperature,
                "max_new_tokens": options.tokens,
                "sampling_seed": number * 1000 + index,
            }
            for index in range(len(prompts))
        ]
        batch = generate(
            url,
            prompts,
            sampling,
            concurrency=options.concurrency,
            extra={"return_logprob": True},
        )
        lengths.setdefault(temperature, []).append(batch.accepted_length)
        entropies[temperature] = surprise(batch)  # of the last server and round
    return lengths


def surprise(batch: Batch) -> float:
    """Mean of -log p over the sampled tokens: an unbiased estimate of the entropy per token."""
    drawn = [-entry[0] for each in batch.rollouts for entry in each.meta["output_token_logprobs"]]
    return sum(drawn) / len(drawn)


def section(lengths: Lengths, result: dict[str, Any]) -> str:
    temperatures = list(next(iter(lengths.values())))
    rows = []
    for shape in SHAPES:
        stock, ours = (lengths[f"{shape}, {rule}"] for rule in RULES)
        rows += [
            [f"{shape}, {rule}", *(_text(lengths[f"{shape}, {rule}"][t]) for t in temperatures)]
            for rule in RULES
        ]
        gains = [Spread.of(ours[t]).median / Spread.of(stock[t]).median - 1 for t in temperatures]
        rows.append(["gain", *(f"{gain:+.1%}" for gain in gains)])
    nats = result["entropy_nats_per_token"]
    entropy = ["entropy, nats per token", *(f"{nats[f'{t:g}']:.2f}" for t in temperatures)]
    machine, versions, load = result["machine"], result["versions"], result["load"]
    device = machine["gpus"][0] if machine["gpus"] else f"{machine['cpu']}, no GPU"
    rendered = "" if machine["gpus"] else " SGLang's rule is rendered in PyTorch there."
    return (
        f"{device}; torch {versions['torch']}, SGLang {versions['sglang']}, commit "
        f"{versions['commit']}; {load['prompts']} held-out prompts of the bundled models, at most "
        f"{load['max_new_tokens']} tokens, natural end; median of {load['rounds']} rounds of other "
        f"seeds (smallest–largest).{rendered}\n\n"  # noqa: RUF001
        + markdown_table(
            ["accepted length", *(f"T = {t:g}" for t in temperatures)], [*rows, entropy]
        )
    )


def _text(rounds: list[float]) -> str:
    spread = Spread.of(rounds)
    return f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"  # noqa: RUF001


def plot(path: Path, lengths: Lengths, result: dict[str, Any]) -> None:
    temperatures = list(next(iter(lengths.values())))
    series = [
        Bars(
            name,
            COLOURS.get(name, "#c9803a"),
            [Spread.of(row[t]) for t in temperatures],
            [f"{Spread.of(row[t]).median:.1f}" for t in temperatures],
        )
        for name, row in lengths.items()
    ]
    where = (result["machine"]["gpus"] or [result["machine"]["cpu"]])[0]
    plot_grouped_bars(
        path,
        title=f"Accepted length by temperature, same drafter, on {where}",
        value="tokens committed per verify",
        groups=[f"T = {t:g}" for t in temperatures],
        series=series,
    )


if __name__ == "__main__":
    main()
