"""What the drafter routes take and answer, as OpenAPI shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Label = Annotated[str, StringConstraints(max_length=200, pattern=r"^[\x20-\x7e]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]
VersionNumber = Annotated[int, Field(ge=0, le=2**53)]


class PushOptions(BaseModel):
    """Query parameters of POST /update_drafter."""

    model_config = ConfigDict(extra="forbid")

    version: Label = Field(default="", description="The pusher's own name for these weights.")
    base_version: VersionNumber | None = Field(
        default=None, description="Apply only while this version serves; 409 if another came first."
    )
    dry_run: bool = Field(default=False, description="Check everything and change nothing.")
    wait: bool = Field(
        default=False, description="While another push is under way, wait for it instead of 409."
    )
    guard: Literal["on", "off"] = Field(
        default="on",
        description="Compare acceptance with the previous drafter and roll back if worse.",
    )
    guard_verifies: Annotated[int, Field(ge=1, le=10**9)] | None = Field(
        default=None,
        description="Verifies to compare over; default --respec-drafter-guard-verifies.",
    )
    guard_ratio: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="Worse is less than this part; default --respec-drafter-guard-ratio.",
    )


class GroupTensor(BaseModel):
    """One tensor in the order of the broadcasts."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=256)
    dtype: Literal["F32", "F16", "BF16", "I64", "I32", "BOOL"]
    shape: list[Annotated[int, Field(ge=0, le=2**40)]] = Field(max_length=8)


class Group(BaseModel):
    """A process group that the trainer, as rank 0, opens and broadcasts the tensors in."""

    model_config = ConfigDict(extra="forbid")

    address: str = Field(max_length=256, description="Where the trainer's TCPStore listens.")
    port: Annotated[int, Field(ge=1, le=65535)]
    world_size: Annotated[int, Field(ge=2, le=4096)] = Field(
        description="1 + the server's tensor-parallel size."
    )
    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,100}$")] = "respec-drafter"
    backend: Literal["gloo", "nccl"] = "gloo"
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    tensors: list[GroupTensor] = Field(min_length=1, max_length=4096)


class Source(BaseModel):
    """A JSON body of POST /update_drafter: a file of the server's, or a process group."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(
        default=None, min_length=1, max_length=4096, description="Under --respec-drafter-dir."
    )
    group: Group | None = None


class RollbackOptions(BaseModel):
    """The JSON body of POST /drafter/rollback, which may be left out."""

    # A misspelt `to` must not roll back to somewhere else.
    model_config = ConfigDict(extra="forbid")

    to: VersionNumber | None = Field(
        default=None, description="A version whose weights are kept; default the one before."
    )


class Phases(BaseModel):
    """Milliseconds. Serving goes on during all but `commit`."""

    receive_ms: float = 0.0
    check_ms: float = 0.0
    stage_ms: float = 0.0
    commit_ms: float = Field(default=0.0, description="The pause between two steps.")


class PushAnswer(BaseModel):
    applied: bool = Field(description="Whether these weights came to serve by this request.")
    status: Literal["applied", "already_serving", "valid"]
    version: int = Field(description="The version that serves now.")
    previous: int | None = None
    label: str = ""
    sha256: str = ""
    bytes: int = 0
    ignored: list[str] = Field(
        default_factory=list, description="Tensors that are the target's own; never written."
    )
    phases: Phases = Field(default_factory=Phases)
    guard: dict[str, Any] | None = None


class RollbackAnswer(BaseModel):
    version: int = Field(description="The new version, which serves now.")
    restores: int = Field(description="The version whose weights it brought back.")
    previous: int
    phases: Phases


class VersionAnswer(BaseModel):
    number: int
    label: str
    sha256: str
    origin: Literal["start", "push", "rollback", "guard"]
    committed_at: float = Field(description="Seconds since the epoch.")
    restores: int | None
    serving: bool
    kept: bool = Field(description="Whether POST /drafter/rollback can bring it back.")
    verifies: int
    accepted_length: float | None = Field(description="Tokens per verify, bonus included.")
    verdict: str = Field(description="The guard's: kept, worse, or empty.")


class StateAnswer(BaseModel):
    serving: int
    versions: list[VersionAnswer]
    guard: dict[str, Any]
    pushes: dict[str, int] = Field(description="Pushes since the start, by result.")
    pushing: bool = Field(description="Whether a push is under way.")
    max_push_bytes: int


class SlotAnswer(BaseModel):
    name: str
    shape: list[int]
    dtype: str
    role: Literal["weight", "shared", "map"]


class SchemaAnswer(BaseModel):
    slots: list[SlotAnswer]
    vocab_size: int


class ProblemAnswer(BaseModel):
    tensor: str
    problem: str
    expected: str | None = None
    got: str | None = None


class ErrorBody(BaseModel):
    code: str = Field(description="For machines; stays when the message is reworded.")
    message: str
    problems: list[ProblemAnswer] = Field(default_factory=list)


class ErrorAnswer(BaseModel):
    """Nothing was changed."""

    error: ErrorBody
