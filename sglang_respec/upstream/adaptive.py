"""SGLang's own adaptive policy behind our Protocol: the object itself, not an imitation.

Importing this module imports much of SGLang (seconds); nothing does so unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang.srt.speculative.adaptive_spec_params import AdaptiveSpeculativeParams

from sglang_respec.core import PLAIN, BatchStats, Plan, SpeculationConfig, StepRecord
from sglang_respec.errors import RespecError

INITIAL_STEPS = 3


class SglangChosen:
    """Stands where a policy stands in a server whose shape SGLang's adaptive mode chooses.

    It tells what is in force. SGLang's 0 steps are called plain here, as they commit one token;
    they are a verify of one node and, unless told otherwise, a draft-extend.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    @property
    def _config(self) -> SpeculationConfig:
        worker = self._worker
        steps, nodes = worker.speculative_num_steps, worker.speculative_num_draft_tokens
        return SpeculationConfig(steps, worker.topk, nodes) if steps else PLAIN

    def decide(self, stats: BatchStats) -> Plan:
        del stats
        return Plan(self._config, "rule")

    def record(self, step: StepRecord) -> None:
        """SGLang counts for itself."""

    def on_drafter_push(self) -> None:
        """SGLang's mode has no notion of a push."""

    def table(self) -> dict[str, Any]:
        return {"policy": "sglang-adaptive", "current": str(self._config), "reason": "rule"}


class SglangAdaptive:
    """Chains only, by the accepted length alone; knows no time.

    Its 0 steps become PLAIN here, which is cheaper than SGLang's own 0 steps: those verify one node
    and run the draft-extend each step.
    """

    def __init__(
        self, configs: Sequence[SpeculationConfig], config_path: str | None = None
    ) -> None:
        self._params = AdaptiveSpeculativeParams(INITIAL_STEPS, config_path)
        self._chains = {0: PLAIN} | {
            each.num_steps: each for each in configs if each.topk == 1 and not each.is_plain
        }
        missing = sorted(set(self._params.candidate_steps) - set(self._chains))
        if missing:
            raise RespecError(
                f"SGLang's adaptive policy wants chains of {missing} steps; add them to the "
                "configs, or give it a file of candidate steps."
            )
        self._current = PLAIN

    def decide(self, stats: BatchStats) -> Plan:
        self._current = self._chains[self._params.get_steps_for_batch(stats.batch_size)]
        return Plan(self._current, "rule")

    def record(self, step: StepRecord) -> None:
        # SGLang passes one count per request and uses their mean; here the mean is known already.
        mean = step.tokens_committed / step.batch_size - 1.0
        self._params.on_verify_complete([mean], step.batch_size)

    def on_drafter_push(self) -> None:
        """SGLang's policy has no notion of a push."""

    def table(self) -> dict[str, Any]:
        return {"policy": "sglang-adaptive", "current": str(self._current), "reason": "rule"}
