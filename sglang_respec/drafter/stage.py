"""New weights in the live layout, beside the serving ones.

The serving module keeps q, k and v in one parameter, and only its part of each on every rank. Its
own `load_weights` knows how; here it runs against twins of the parameters, so that what is staged
is what a restart would have loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sglang_respec.drafter.pace import PIECE_BYTES, Pace
from sglang_respec.drafter.reader import Tensor as Entry
from sglang_respec.drafter.reader import read_whole
from sglang_respec.errors import RespecError

TORCH_TYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "BOOL": torch.bool, "U8": torch.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """One drafter in the live layout: this rank's part of it."""

    parameters: dict[str, Tensor]
    token_map: Tensor | None  # int64 [draft vocabulary]: draft id -> target id

    def to(self, device: torch.device) -> Weights:
        """The same on a device; itself where it is there already."""
        moved = {name: each.to(device) for name, each in self.parameters.items()}
        token_map = self.token_map.to(device) if self.token_map is not None else None
        return Weights(moved, token_map)


@dataclass(frozen=True)
class LiveDrafter:
    """The serving drafter: its module, the parameters that are its own, and its vocabulary map.

    What it shares with the target is not in `own`, and is neither staged nor written.
    """

    model: nn.Module
    own: dict[str, nn.Parameter]
    token_map: Tensor | None

    @property
    def device(self) -> torch.device:
        return next(iter(self.own.values())).device

    def snapshot(self, device: torch.device, pace: Pace) -> Weights:
        """A copy of what serves now."""
        parameters = {}
        for name, each in self.own.items():
            parameters[name] = _copy(each.data, device)
            pace.rest()
        token_map = _copy(self.token_map, device) if self.token_map is not None else None
        return Weights(parameters, token_map)

    @torch.no_grad()
    def write(self, weights: Weights) -> None:
        """Overwrite the serving drafter in place: addresses, and so CUDA graphs, stay valid."""
        for name, parameter in self.own.items():
            _overwrite(parameter.data, weights.parameters[name])
        if self.token_map is not None and weights.token_map is not None:
            _overwrite(self.token_map, weights.token_map)


def own_parameters(drafter: nn.Module, target: nn.Module) -> dict[str, nn.Parameter]:
    """The drafter's parameters that are not the target's, by identity of their memory."""
    targets = {each.data_ptr() for each in target.parameters()}
    return {n: p for n, p in drafter.named_parameters() if p.data_ptr() not in targets}


class ShadowModel:
    """Stands in for the serving module while its `load_weights` runs."""

    def __init__(self, live: LiveDrafter, pace: Pace) -> None:
        self._live_model = live.model
        self._twins = {}
        for name, each in live.own.items():
            self._twins[name] = _twin(each)
            pace.rest()
        self.hot_token_id: Tensor | None = None  # load_weights sets it from d2t

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._twins.items())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._live_model, name)


@torch.no_grad()
def stage(live: LiveDrafter, tensors: Iterable[tuple[str, Tensor]], pace: Pace) -> Weights:
    """Load checkpoint tensors beside the live ones; the live ones are not touched.

    Twins start as NaN, so a value that nothing wrote is found as surely as one that was sent.
    Raises `RespecError` for either, and whatever `load_weights` raises.
    """
    shadow = ShadowModel(live, pace)
    type(live.model).load_weights(shadow, _resting(tensors, pace))
    parameters = {name: twin.data for name, twin in shadow.named_parameters()}
    for name, values in parameters.items():
        if not _all_finite(values, pace):
            raise RespecError(
                f"{name} is not finite in {values.dtype}, or not wholly filled; "
                "check the pushed values and their range."
            )
    token_map = shadow.hot_token_id
    if (token_map is None) != (live.token_map is None):
        raise RespecError("The push and the serving drafter do not both have a d2t map.")
    if token_map is not None and live.token_map is not None:
        if token_map.shape != live.token_map.shape:
            raise RespecError(
                f"d2t maps {token_map.shape[0]} tokens and the serving drafter "
                f"{live.token_map.shape[0]}; a vocabulary of another size needs a restart."
            )
        token_map = token_map.to(live.token_map.device, live.token_map.dtype)
    return Weights(parameters, token_map)


def tensors_of_file(
    path: str | os.PathLike[str], layout: dict[str, Entry], names: Iterable[str], pace: Pace
) -> Iterator[tuple[str, Tensor]]:
    """Read these tensors one after the other; only one is in memory at a time."""
    for name in names:
        entry = layout[name]
        if entry.nbytes:
            whole = read_whole(path, entry, PIECE_BYTES, pace.rest)
            yield name, torch.frombuffer(whole, dtype=TORCH_TYPES[entry.dtype]).view(entry.shape)


def _resting(tensors: Iterable[tuple[str, Tensor]], pace: Pace) -> Iterator[tuple[str, Tensor]]:
    """The same tensors, with a rest after whoever takes them has done with each."""
    for each in tensors:
        yield each
        pace.rest()


def _all_finite(values: Tensor, pace: Pace) -> bool:
    for piece in values.flatten().split(PIECE_BYTES // values.element_size()):
        if not bool(torch.isfinite(piece).all()):
            return False
        pace.rest()
    return True


def _twin(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of the same kind, with the attributes that tell loaders how it is split."""
    data = torch.full_like(parameter.data, float("nan"))
    twin = torch.Tensor._make_subclass(type(parameter), data, False)
    twin.__dict__.update(parameter.__dict__)
    return twin


def _overwrite(live: Tensor, shadow: Tensor) -> None:
    live.copy_(shadow, non_blocking=True)
    if shadow.is_cuda:
        # It was made on the staging stream and is let go of at once: not before this copy is done.
        shadow.record_stream(torch.cuda.current_stream(shadow.device))


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(tensor, device=device).copy_(tensor)
