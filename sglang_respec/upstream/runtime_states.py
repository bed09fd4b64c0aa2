"""Every shape of speculation held ready: what of the workers depends on the shape, and swapping it.

SGLang's adaptive mode builds such states for chains, keyed by their steps, and can apply them one
after another. Here a state is keyed by the whole shape, trees among them, and applying it is
setting attributes. Plain decoding is a state too: of the target alone. SGLang's own settings stay
at the server's own shape, the largest: from them the scheduler reserves KV slots, before this
step's shape is known.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sglang.srt.runtime_context import get_context

from sglang_respec.core import SpeculationConfig
from sglang_respec.upstream.plain_graph import capture_plain_graph

SHAPE = ("speculative_num_steps", "topk", "speculative_num_draft_tokens")
DRAFT_WORKER = (
    "draft_topk",
    "speculative_num_steps",
    "speculative_num_draft_tokens",
    "draft_attn_backend",
    "draft_extend_attn_backend",
    "cuda_graph_runner",
    "cuda_graph_runner_for_draft_extend",
    "_topk1_parents_prealloc",
    "_topk1_score_indices_prealloc",
)
DRAFT_RUNNER = ("draft_attn_backend", "attn_backend")
TARGET_RUNNER = ("attn_backend", "decode_cuda_graph_runner")


@dataclass(frozen=True)
class RuntimeState:
    """The attributes that make a worker speculate in one shape."""

    config: SpeculationConfig
    attributes: tuple[tuple[Any, str, Any], ...]  # owner, name, value

    def apply(self) -> None:
        for owner, name, value in self.attributes:
            setattr(owner, name, value)


class RuntimeStates:
    """The states of all shapes that a worker may be asked for."""

    def __init__(self, worker: Any, own: SpeculationConfig) -> None:
        self._worker = worker
        self.own = own
        self._states = {own: _snapshot(worker, own)}
        self._in_force = own

    def build(self, configs: Sequence[SpeculationConfig]) -> None:
        """Builds what is missing, as SGLang does for a tier of its adaptive mode."""
        with self._worker.drafter_context():
            for config in configs:
                if config not in self._states:
                    self._states[config] = self._built(config)
        self._states[self.own].apply()
        self._in_force = self.own

    def keep(self, configs: Sequence[SpeculationConfig]) -> None:
        """Lets go of every other state but the server's own, and of its graphs."""
        wanted = {self.own, *configs}
        self._states = {each: state for each, state in self._states.items() if each in wanted}

    def _built(self, config: SpeculationConfig) -> RuntimeState:
        worker = self._worker
        if config.is_plain:
            return RuntimeState(config, capture_plain_graph(worker.target_worker.model_runner))
        with _settings_of(worker, config):
            built = worker.build_adaptive_runtime_state(config.num_steps, config.num_draft_tokens)
            worker.speculative_num_steps = -1  # SGLang applies nothing if the steps are the same
            worker.apply_runtime_state(built)
            return _snapshot(worker, config)

    def activate(self, config: SpeculationConfig) -> None:
        if config != self._in_force:
            self._states[config].apply()
            self._in_force = config


def _snapshot(worker: Any, config: SpeculationConfig) -> RuntimeState:
    draft = worker.draft_worker
    owners = (
        (worker, SHAPE),
        (draft, DRAFT_WORKER),
        (draft.draft_runner, DRAFT_RUNNER),
        (worker.target_worker.model_runner, TARGET_RUNNER),
    )
    attributes = tuple(
        (owner, name, getattr(owner, name)) for owner, names in owners for name in names
    )
    return RuntimeState(config, attributes)


@contextmanager
def _settings_of(worker: Any, config: SpeculationConfig) -> Iterator[None]:
    """What SGLang reads while it builds, on the workers and in its settings; then put back."""
    draft = worker.draft_worker
    own = SpeculationConfig(*(getattr(worker, name) for name in SHAPE))
    _set_shape(worker, draft, config)
    try:
        yield
    finally:
        _set_shape(worker, draft, own)


def _set_shape(worker: Any, draft: Any, config: SpeculationConfig) -> None:
    for name, value in zip(
        SHAPE, (config.num_steps, config.topk, config.num_draft_tokens), strict=True
    ):
        setattr(worker, name, value)
        setattr(draft, name, value)
    draft.draft_topk = config.topk
    get_context().override(
        "respec.build_state",
        speculative_num_steps=config.num_steps,
        speculative_eagle_topk=config.topk,
        speculative_num_draft_tokens=config.num_draft_tokens,
    )
