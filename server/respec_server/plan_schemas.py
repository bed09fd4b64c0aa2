"""What the routes of the planner answer, as OpenAPI shows it. Times in seconds unless named."""

from __future__ import annotations

from pydantic import BaseModel, Field


class CellAnswer(BaseModel):
    """One configuration at one batch size, as the policy believes."""

    config: str = Field(description="steps,top-k,nodes; 0,1,1 is plain decoding.")
    step_s: float
    step_relative_error: float
    expected_accepted: float = Field(description="Tokens per request and step, bonus included.")
    expected_accepted_error: float
    tokens_per_s: float = Field(description="Committed by the whole batch.")


class RowAnswer(BaseModel):
    batch_size: float
    best: str
    configs: list[CellAnswer]


class BelievedDepth(BaseModel):
    depth: int
    first: float = Field(description="Chance that the target's token is the first candidate.")
    any: float = Field(description="Chance that it is any of the candidates.")
    candidates: int
    observations: float = Field(description="Weight of the evidence; fades.")


class BelievedClass(BaseModel):
    temperature_class: str
    depths: list[BelievedDepth]


class MeasuredDepth(BaseModel):
    depth: int
    offered: int = Field(description="Nodes the target reached, with drafted candidates.")
    accepted: int = Field(description="Of those, where its token was a candidate.")
    first_accepted: int
    acceptance: float | None


class ConfigAnswer(BaseModel):
    """What one configuration did since the start."""

    config: str
    time_share: float = Field(description="Of busy_s of all; they sum to 1.")
    steps: int
    requests: int = Field(description="Batch sizes of these steps, added up.")
    tokens: int = Field(description="Committed, before stops cut any.")
    probe_steps: int
    busy_s: float = Field(description="Of steps that followed another, catch-ups included.")
    measured_steps: int = Field(description="Of those, steps without a catch-up.")
    measured_s: float
    predicted_steps: int
    predicted_s: float
    predicted_measured_s: float
    prediction_off_s: float
    mean_batch_size: float | None
    accepted_length: float | None = Field(description="Tokens per request and step.")
    step_s: float | None = Field(description="Mean of the measured steps.")
    tokens_per_s: float | None = Field(description="Of the whole batch, while it runs.")
    predicted_step_s: float | None = Field(description="Mean of what was predicted for them.")
    prediction_error: float | None = Field(description="Mean |predicted - measured| / measured.")


class SwitchAnswer(BaseModel):
    step: int = Field(description="Decode steps launched before it.")
    at: float = Field(description="Seconds since the epoch.")
    before: str
    after: str
    reason: str
    batch_size: int
    mean_context_tokens: float
    gap_tokens: int = Field(description="What a catch-up had to run then.")


class PlanAnswer(BaseModel):
    policy: str
    setting: str = Field(description="--respec-policy.")
    current: str
    reason: str
    reason_meaning: str
    batch_size: int | None = Field(default=None, description="Of the last decision.")
    mean_context_tokens: float | None = None
    expected_dwell_steps: float | None = None
    rows: list[RowAnswer] = Field(
        description="By batch size, at the last batch's context and temperatures. Empty for a "
        "policy that knows no step times."
    )
    acceptance: list[BelievedClass] = Field(description="Empty for a policy that learns none.")
    measured: list[ConfigAnswer]
    measured_depths: list[MeasuredDepth]
    last_switches: list[SwitchAnswer] = Field(description="The newest first; at most 32.")


class TapAnswer(BaseModel):
    ring_bytes: int = Field(description="0 where no policy switches.")
    window_tokens: int
    slots: int
    overflow: str
    plain_prefill: str


class ProfileAnswer(BaseModel):
    path: str = Field(description="--respec-profile; empty if none was named.")
    kind: str
    source: str
    held_out_relative_error: float | None
    graph_bytes: dict[str, int] = Field(
        description="Of each configuration beside the server's own, where graphs were measured."
    )


class SwitchCount(BaseModel):
    config: str = Field(description="Changed to.")
    reason: str
    switches: int


class StateAnswer(BaseModel):
    policy: str = Field(description="--respec-policy.")
    own: str = Field(description="The server's own shape, the largest.")
    held: list[str] = Field(description="Configurations that the policy may run.")
    current: str | None
    reason: str | None
    running_requests: int
    uptime_s: float
    steps: int
    configs: list[ConfigAnswer]
    steps_by_reason: dict[str, int]
    switches: int
    switches_per_1000_steps: float
    switches_by_reason: list[SwitchCount]
    prefills: int
    catch_ups: int = Field(description="Steps before which the drafter caught up.")
    catch_up_tokens: int
    catch_up_s: float = Field(description="Of the host.")
    guesses: int = Field(description="Tokens the drafter guessed at in plain steps: probes.")
    drafter_swaps: int
    drafter_version: int
    depths: list[MeasuredDepth]
    decision_us: dict[str, float] = Field(description="Quantiles of the last 1024 decisions.")
    tap: TapAnswer
    profile: ProfileAnswer | None
    versions: dict[str, str]
