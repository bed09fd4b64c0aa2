"""Which of the running requests are collected, by their slots; and which never are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX

from sglang_respec.hidden_tap import Ints
from sglang_respec.learner.chunk_format import MAX_ID_CHARS
from sglang_respec.learner.collect import Collector
from sglang_respec.learner.collect_rollout import OpenRollout
from sglang_respec.sampling.seeds import seed_of_name

ROLLOUT = "respec_rollout"  # on SGLang's Req; None once it was decided not to collect it


def rollout_of(request: Any) -> OpenRollout | None:
    rollout: OpenRollout | None = request.__dict__.get(ROLLOUT)
    return rollout


class CollectedRequests:
    """Rows are slots of SGLang's request pool; a row is entered again with every prefill."""

    def __init__(self, slots: int, collector: Collector) -> None:
        self._collector = collector
        self._rollouts: NDArray[np.object_] = np.full(slots, None, dtype=object)
        self._chosen: NDArray[np.bool_] = np.zeros(slots, dtype=np.bool_)

    def enter(self, batch: Any) -> None:
        """Before a prefill. What was decided about a request holds for its later chunks, and
        when it comes back after a retraction."""
        for request, slot in zip(batch.reqs, batch.req_pool_indices_cpu.tolist(), strict=True):
            if ROLLOUT not in request.__dict__:
                setattr(request, ROLLOUT, self._decided(request))
            rollout = rollout_of(request)
            self._rollouts[slot] = rollout
            self._chosen[slot] = rollout is not None and not rollout.dropped

    def rows(self, slots: Ints) -> Ints:
        """Rows [C] i64 of a batch in these slots [B] that are collected."""
        rows: Ints = np.flatnonzero(self._chosen[slots])
        return rows

    def rollouts(self, slots: Ints) -> list[OpenRollout]:
        found: list[OpenRollout] = self._rollouts[slots].tolist()
        return found

    def forget(self, slot: int, rollout: OpenRollout) -> None:
        """Nothing more is wanted of this rollout, if the slot still is its own."""
        if self._rollouts[slot] is rollout:
            self._chosen[slot] = False

    def _decided(self, request: Any) -> OpenRollout | None:
        if not _says_what_the_target_says(request) or len(request.rid) > MAX_ID_CHARS:
            return None
        params = request.sampling_params
        if params.max_new_tokens == 0 or request.rid.startswith(HEALTH_CHECK_RID_PREFIX):
            return None
        seed = params.sampling_seed
        return self._collector.enter(
            request.rid,
            len(request.origin_input_ids),
            seed_of_name(request.rid) if seed is None else seed,
            # SGLang has turned a temperature of 0 into top-k 1 at temperature 1.
            0.0 if params.top_k == 1 else params.temperature,
        )


def _says_what_the_target_says(request: Any) -> bool:
    """Not so where a token is drawn from other logits than the target gave for the tokens before
    it: penalties, grammars, biases, processors, adapters, watermarks, and prompts that are not
    tokens."""
    params = request.sampling_params
    penalised = (
        params.frequency_penalty != 0
        or params.presence_penalty != 0
        or params.repetition_penalty != 1
        or params.min_new_tokens > 0
    )
    grammar = params.json_schema or params.regex or params.ebnf or params.structural_tag
    other_logits = request.custom_logit_processor or request.lora_id or params.watermark
    no_tokens = request.multimodal_inputs is not None or request.input_embeds is not None
    return not (penalised or grammar or params.logit_bias or other_logits or no_tokens)
