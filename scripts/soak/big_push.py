"""One drafter of half a gigabyte and more: what each phase of its push takes, and what it disturbs.

The target is as wide as a 7B model and shallow, so that the drafter is of the real size and the
whole still serves on a CPU. All weights are random: nothing drafted is accepted, and the figures
are of the push alone.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import torch
from safetensors.torch import save_file

from respec_server.client import DrafterClient
from respec_server.process import ServerProcess
from soak.load import footprint, probing, state
from soak.results import spread

HIDDEN, VOCAB = 4096, 32000
DRAFT_VOCAB = VOCAB  # the whole of it, so that there is no map, which dummy weights lack
TARGET_LAYERS, TARGET_INTERMEDIATE = 7, 512
DRAFTER_INTERMEDIATE = 4096
HEADS, KV_HEADS, HEAD_DIM = 8, 2, 128
PUSHES = 5
ROUNDS = 3
TOKENS = 24
REQUESTS = 4
THROUGHPUT_GATE = 0.9

SHAPES = {
    "midlayer.self_attn.q_proj.weight": (HEADS * HEAD_DIM, 2 * HIDDEN),
    "midlayer.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, 2 * HIDDEN),
    "midlayer.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, 2 * HIDDEN),
    "midlayer.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
    "midlayer.mlp.gate_proj.weight": (DRAFTER_INTERMEDIATE, HIDDEN),
    "midlayer.mlp.up_proj.weight": (DRAFTER_INTERMEDIATE, HIDDEN),
    "midlayer.mlp.down_proj.weight": (HIDDEN, DRAFTER_INTERMEDIATE),
    "midlayer.hidden_norm.weight": (HIDDEN,),
    "midlayer.input_layernorm.weight": (HIDDEN,),
    "midlayer.post_attention_layernorm.weight": (HIDDEN,),
    "fc.weight": (HIDDEN, 3 * HIDDEN),
    "norm.weight": (HIDDEN,),
    "lm_head.weight": (DRAFT_VOCAB, HIDDEN),
}
COMMON = {
    "hidden_size": HIDDEN, "vocab_size": VOCAB, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}  # fmt: skip


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="respec-big-") as folder:
        target, drafters = _write_models(Path(folder))
        flags = [
            *("--model-path", str(target), "--drafter-path", str(drafters[0])),
            *("--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "bfloat16"),
            *("--device", "cpu", "--max-total-tokens", "2048", "--respec-portable-threads", "1"),
            *("--speculative-num-steps", "1", "--speculative-eagle-topk", "1"),
            *("--speculative-num-draft-tokens", "2", "--respec-drafter-versions", "2"),
            *("--respec-policy", "always", "--enable-metrics"),
        ]
        with ServerProcess(flags, ready_timeout_s=600) as server:
            return _measure(server, [each / "model.safetensors" for each in drafters])


def _measure(server: ServerProcess, files: list[Path]) -> dict[str, Any]:
    client = DrafterClient(server.url)
    idle_mb, answers, ratios = _memory_mb(server), [], []
    peak = _Peak(server)
    with peak:
        for number in range(PUSHES):
            report = client.push(files[number % 2], guard=False)
            answers.append(report.applied[server.url])
    before = footprint(server)
    with probing(server.url) as seen:
        for _ in range(ROUNDS):
            alone = _tokens_per_second(server.url)
            stop = threading.Event()
            thread = threading.Thread(target=_push_until, args=(client, files, stop))
            thread.start()
            beside = _tokens_per_second(server.url)
            stop.set()
            thread.join()
            ratios.append(beside / alone)
    phases = {
        name: round(statistics.median(each["phases"][name] for each in answers), 1)
        for name in answers[0]["phases"]
    }
    return {
        "what": f"pushes of a bfloat16 drafter: hidden size {HIDDEN}, draft vocabulary "
        f"{DRAFT_VOCAB}; on one machine, over loopback",
        "megabytes": round(files[0].stat().st_size / 1e6, 1),
        "phases_ms_median": phases,
        "pause_ms": spread([each["phases"]["commit_ms"] for each in answers]),
        "probe_s": {path: spread(times) for path, times in seen.probe_s.items()},
        "failed_probes": seen.failed_probes[:20],
        "footprint": {"before the rounds": before, "after them": footprint(server)},
        "memory_mb": {"before": idle_mb, "peak during pushes": peak.megabytes,
                      "after": _memory_mb(server)},
        "throughput_while_pushing": {
            "what": "tokens per second with pushes back to back, relative to without",
            "rounds": [round(each, 3) for each in ratios],
        },
        "gates": {
            "every push was applied": all(each["applied"] for each in answers),
            "the version counts them": state(server.url)["serving"] >= PUSHES,
            "no probe failed": not seen.failed_probes,
            f"throughput at least {THROUGHPUT_GATE}x": statistics.median(ratios)
            >= THROUGHPUT_GATE,
        },
    }  # fmt: skip


def _push_until(client: DrafterClient, files: list[Path], stop: threading.Event) -> None:
    number = 1
    while not stop.is_set():
        client.push(files[number % 2], guard=False)
        number += 1


def _tokens_per_second(url: str) -> float:
    """Greedy requests one after another: each step is as long as steps get here."""
    started = time.perf_counter()
    for number in range(REQUESTS):
        sampling = {"temperature": 0.0, "max_new_tokens": TOKENS, "ignore_eos": True}
        body = {"input_ids": [5 + number, 6, 7], "sampling_params": sampling}
        httpx.post(f"{url}/generate", json=body, timeout=600, trust_env=False).raise_for_status()
    return REQUESTS * TOKENS / (time.perf_counter() - started)


class _Peak:
    """The most memory the server had while a block ran."""

    def __init__(self, server: ServerProcess) -> None:
        self.megabytes = 0.0
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.megabytes = max(self.megabytes, _memory_mb(self._server))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _memory_mb(server: ServerProcess) -> float:
    main = psutil.Process(server.pid)
    family = [main, *main.children(recursive=True)]
    return round(sum(each.memory_info().rss for each in family) / 1e6, 1)


def _write_models(folder: Path) -> tuple[Path, list[Path]]:
    target = folder / "target"
    target.mkdir()
    config = {
        **COMMON, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
        "intermediate_size": TARGET_INTERMEDIATE, "num_hidden_layers": TARGET_LAYERS,
        "tie_word_embeddings": True, "eos_token_id": 2,
    }  # fmt: skip
    (target / "config.json").write_text(json.dumps(config))
    drafters = []
    for seed in range(2):
        drafter = folder / f"drafter-{seed}"
        drafter.mkdir()
        config = {
            **COMMON, "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama",
            "intermediate_size": DRAFTER_INTERMEDIATE, "num_hidden_layers": 1,
            "draft_vocab_size": DRAFT_VOCAB, "tie_word_embeddings": False,
        }  # fmt: skip
        (drafter / "config.json").write_text(json.dumps(config))
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: (0.02 * torch.randn(shape, generator=generator)).bfloat16()
            for name, shape in SHAPES.items()
        }
        save_file(tensors, drafter / "model.safetensors")
        drafters.append(drafter)
    return target, drafters
