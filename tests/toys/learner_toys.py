"""A drafter of a few numbers, rollouts of a target made of one table, and a server that records."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from torch import Tensor

from respec_kernels import sample_rows
from sglang_respec.learner.eagle3 import DrafterConfig, Eagle3Drafter
from sglang_respec.learner.samples import RolloutSample

torch.set_num_threads(1)  # tensors of a few numbers; threads only cost here

VOCAB, HIDDEN = 13, 8
DRAFT_IDS = torch.tensor([0, 2, 3, 6, 8, 9, 12])
CONFIG = DrafterConfig(
    vocab_size=VOCAB,
    draft_vocab_size=len(DRAFT_IDS),
    hidden_size=HIDDEN,
    target_hidden_size=HIDDEN,
    intermediate_size=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=256,
)
EMBEDDING = torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0))


def make_drafter(seed: int = 0, draft_ids: Tensor = DRAFT_IDS) -> Eagle3Drafter:
    torch.manual_seed(seed)
    drafter = Eagle3Drafter(replace(CONFIG, draft_vocab_size=len(draft_ids)), EMBEDDING, draft_ids)
    for parameter in drafter.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return drafter


@cache
def markov_rollout(
    number: int,
    *,
    prompt_tokens: int = 5,
    tokens: int = 30,
    temperature: float = 1.0,
    listed: int = 6,
    first_aux: int = 0,
    policy_version: int = 0,
    prompt_seed: int | None = None,
) -> RolloutSample:
    """A target whose logits are one row of a table per token, sampled as a server samples: token
    p + 1 is `sample_rows` of row p. Its hidden states tell the token."""
    generator = torch.Generator().manual_seed(99)
    table = 3 * torch.randn(VOCAB, VOCAB, generator=generator)
    states = torch.randn(VOCAB, 3 * HIDDEN, generator=generator)
    mine = torch.Generator().manual_seed(number if prompt_seed is None else prompt_seed)
    ids = torch.randint(0, VOCAB, (prompt_tokens,), generator=mine).tolist()
    seed, rows = 1000 + number, []
    while len(ids) < tokens:
        logits = table[ids[-1]][None]
        drawn, _ = sample_rows(
            logits,
            torch.tensor([len(ids) - 1]),
            None,
            torch.tensor([temperature or 1.0]),
            torch.tensor([VOCAB if temperature else 1], dtype=torch.int32),
            torch.ones(1),
            torch.zeros(1),
            torch.tensor([seed]),
            filtered=False,
        )
        rows.append((logits[0] / (temperature or 1.0)).log_softmax(-1))
        ids.append(int(drawn))
    logprobs, top_ids = torch.stack(rows).topk(listed, dim=1)
    return RolloutSample(
        request_id=f"r{number}",
        prompt_tokens=prompt_tokens,
        tokens=torch.tensor(ids, dtype=torch.int32),
        first_aux=first_aux,
        aux=states[torch.tensor(ids[first_aux:-1])],
        top_ids=top_ids.int(),
        top_logprobs=logprobs,
        tail_mass=(1 - logprobs.double().exp().sum(1)).clamp(0, 1).float(),
        seed=seed,
        temperature=temperature,
        drafter_version=0,
        policy_version=policy_version,
    )


@dataclass
class RecordingServer:
    """The drafter routes as far as a pusher sees them; remembers what came."""

    port: int = 0
    version: int = 0
    hashes: dict[int, str] = field(default_factory=lambda: {0: ""})
    bodies: list[bytes] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    refuse_with: tuple[int, str] | None = None  # status and code of the next pushes
    keys: set[str | None] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, sha256: str) -> None:
        """Something else comes to serve."""
        self.version += 1
        self.hashes[self.version] = sha256

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/drafter")
        def state() -> dict[str, Any]:
            versions = [{"number": n, "sha256": each} for n, each in list(self.hashes.items())]
            return {"serving": self.version, "versions": versions}

        @app.post("/update_drafter")
        async def update(request: Request) -> Any:
            body = await request.body()
            self.keys.add(request.headers.get("authorization"))
            digest = hashlib.sha256(body).hexdigest()
            assert request.headers["content-sha256"] == digest
            if self.refuse_with is not None:
                status, code = self.refuse_with
                return JSONResponse({"error": {"code": code, "message": "No."}}, status)
            if int(request.query_params["base_version"]) != self.version:
                error = {"code": "conflict", "message": "Another came first."}
                return JSONResponse({"error": error}, 409)
            self.bodies.append(body)
            self.labels.append(request.query_params["version"])
            self.serve(digest)
            return {"applied": True, "status": "applied", "version": self.version}

        return app


@contextlib.contextmanager
def recording_server(port: int = 0) -> Iterator[RecordingServer]:
    listener = socket.create_server(("127.0.0.1", port))
    server = RecordingServer(listener.getsockname()[1])
    uvicorn_server = uvicorn.Server(uvicorn.Config(server.app(), log_level="error"))
    thread = threading.Thread(target=uvicorn_server.run, args=([listener],))
    thread.start()
    try:
        yield server
    finally:
        uvicorn_server.should_exit = True
        thread.join()
        listener.close()
