"""Every setting of the learner, once: name, default, unit, meaning. Needs no torch.

`respec learn` makes its flags from this table, and the journal's first line records it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from sglang_respec.errors import RespecError


def _setting(default: Any, meaning: str, **rest: Any) -> Any:
    return dataclasses.field(default=default, metadata={"meaning": meaning, **rest})


@dataclasses.dataclass(frozen=True)
class LearnerSettings:
    """Frozen and checked when made; a wrong value is a `RespecError`."""

    # Collecting
    spool_mb: int = _setting(2048, "chunks waiting on disk; the oldest are dropped", unit="MiB")
    reward_window_s: float = _setting(
        0.0, "how long rollout and reward wait for each other", unit="s", least=0
    )
    missing_reward: str = _setting(
        "one", "a rollout without a reward in time: weight one, or drop it",
        choices=("one", "drop"),
    )  # fmt: skip
    # Replay
    train_tokens: int = _setting(1_000_000, "rollout tokens kept to learn from", unit="tokens")
    held_out_tokens: int = _setting(100_000, "rollout tokens kept to judge with", unit="tokens")
    held_out_share: int = _setting(10, "one prompt in so many is held out", least=2)
    max_policy_age: int = _setting(
        8, "policy versions after which a rollout is too old", unit="versions", least=0
    )
    max_age_s: float = _setting(3600.0, "time after which a rollout is too old", unit="s")
    # Distilling
    weight: str = _setting(
        "none", "how a rollout counts in the loss",
        choices=("none", "reward", "advantage", "length"),
    )  # fmt: skip
    weight_clip: float = _setting(4.0, "largest weight of a rollout", least=1)
    steps: int = _setting(5, "chain steps unrolled and judged; as many as are served")
    step_decay: float = _setting(0.8, "weight of a chain step against the one before")
    batch_tokens: int = _setting(8192, "tokens of a batch, padding included", unit="tokens")
    window_tokens: int = _setting(
        2048, "longer rollouts are cut into overlapping windows", unit="tokens", least=64
    )
    learning_rate: float = _setting(5e-5, "AdamW's, after the warm-up")
    warmup_steps: int = _setting(20, "linear warm-up", unit="updates", least=0)
    weight_decay: float = _setting(0.0, "AdamW's, of matrices", least=0)
    clip_norm: float = _setting(0.5, "largest norm of the gradient")
    average: float = _setting(
        0.9, "weights judged and pushed are a running average that keeps so much at each update; "
        "0: those of the last update", least=0, below=1,
    )  # fmt: skip
    reuse: float = _setting(2.0, "how often a collected token is learned from on average")
    least_tokens: int = _setting(4096, "train no sooner than with so many tokens", unit="tokens")
    # Judging and publishing
    judge_every: int = _setting(20, "judge serving and new weights after", unit="updates")
    least_held_out: int = _setting(8, "judge no sooner than with so many rollouts held out")
    publish: str = _setting(
        "decay",
        "publish when the serving drafter has decayed, or every so many updates",
        choices=("decay", "interval"),
    )
    decay: float = _setting(
        0.02, "decayed is: accepts so much less than when it began to serve, or than the new one",
        least=0,
    )  # fmt: skip
    interval: int = _setting(100, "for --publish interval", unit="updates")
    checkpoint_every: int = _setting(100, "besides before each push", unit="updates")
    keep_checkpoints: int = _setting(3, "besides the one that serves")
    seed: int = _setting(0, "of batches", least=0)
    device: str = _setting("cpu", "torch device of the learner: cpu, cuda, cuda:1, ...")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check(field, getattr(self, field.name))
        if self.window_tokens // 8 <= self.steps:
            raise RespecError(
                f"window_tokens {self.window_tokens} is too short for chains of {self.steps}; "
                f"use {8 * (self.steps + 1)} or more."
            )


def settings_table() -> tuple[dataclasses.Field[Any], ...]:
    """The settings in the order of declaration."""
    return dataclasses.fields(LearnerSettings)


def kind_of(field: dataclasses.Field[Any]) -> type:
    return {"int": int, "float": float, "str": str}[str(field.type)]


def check(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise `RespecError` unless this is a value of the setting."""
    kind, meta = kind_of(field), field.metadata
    least: Any = meta.get("least")
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise RespecError(f"{field.name} must be a {kind.__name__}, got {value!r}.")
    if "choices" in meta and value not in meta["choices"]:
        raise RespecError(f"{field.name} must be one of {', '.join(meta['choices'])}.")
    if kind is str:
        return
    # Where no least is given, 0 is excluded: of integers the least is 1.
    number: Any = value
    enough = number > 0 if least is None else number >= least
    if not enough or number >= meta.get("below", float("inf")):
        wanted = "more than 0" if least is None else f"{least} or more"
        wanted += f" and less than {meta['below']}" if "below" in meta else ""
        raise RespecError(f"{field.name} must be {wanted}, got {value!r}.")
