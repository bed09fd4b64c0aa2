"""What receives rollouts in `respec learn`, on a port that can be closed and opened again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from demo.train_drafter import auxiliary_states

from respec_server.learn_receiver import Door, make_app
from respec_server.process import free_port
from sglang_respec.learner.rewards import RewardBook
from sglang_respec.learner.samples import RolloutSample
from sglang_respec.learner.sources import SpoolSource
from sglang_respec.learner.spool import Spool

KEY = "between-server-and-learner"
WAIT_S = 60.0


class Learner:
    """The learner's own door, spool and reader, and no learning."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        spool = Spool(folder, budget_bytes=1 << 30)
        self._source = SpoolSource(spool)
        book = RewardBook(0.0, "one")
        self._app = make_app(spool, book, dict, admin_key=KEY, max_chunk_bytes=1 << 30)
        self._door: Door | None = None

    def open(self) -> None:
        self._door = Door(self._app, "127.0.0.1", self.port)
        self._door.__enter__()

    def close(self) -> None:
        if self._door is not None:
            self._door.__exit__(None, None, None)
        self._door = None

    def rollouts(self, wanted: int) -> dict[str, RolloutSample]:
        """As many as are wanted, once they are there; no chunk was bad, and no rollout too much."""
        found: dict[str, RolloutSample] = {}
        deadline = time.monotonic() + WAIT_S
        while len(found) < wanted and time.monotonic() < deadline:
            read = self._source.read()
            assert not found.keys() & {each.request_id for each in read}
            found |= {each.request_id: each for each in read}
            if not read:
                time.sleep(0.1)
        assert self._source.counters()["chunks_bad"] == 0
        assert len(found) == wanted
        return found


class Deviation:
    """The largest differences between rollouts and one forward of transformers over each."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self.aux = self.logprobs = self.tail = self.unlisted = 0.0

    @torch.inference_mode()
    def add(self, mine: RolloutSample) -> None:
        output = self._target.model(
            input_ids=mine.tokens[None, :-1].long(), output_hidden_states=True, use_cache=False
        )
        aux = auxiliary_states(output.hidden_states)[0, mine.first_aux :]
        self.aux = max(self.aux, float((mine.aux - aux).norm() / aux.norm()))
        logits = self._target.lm_head(output.last_hidden_state[0, mine.prompt_tokens - 1 :])
        logprobs = (logits / (mine.temperature or 1.0)).log_softmax(-1)
        listed = logprobs.gather(1, mine.top_ids.long())
        self.logprobs = max(self.logprobs, float((mine.top_logprobs - listed).abs().max()))
        tail = 1 - listed.double().exp().sum(1)
        self.tail = max(self.tail, float((mine.tail_mass - tail).abs().max()))
        best_unlisted = logprobs.scatter(1, mine.top_ids.long(), -torch.inf).max(1).values
        self.unlisted = max(self.unlisted, float((best_unlisted - listed.min(1).values).max()))
