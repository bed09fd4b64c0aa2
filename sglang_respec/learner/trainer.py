"""One update of the drafter, and what has to be kept to go on from there.

A constant learning rate keeps weights moving about their optimum, and a drafter that is good
already can lose acceptance by that. So what is judged and pushed is a running average of them
(Polyak and Juditsky 1992, with the exponential weights of Adam's own moments):

    average <- average * keep + weights * (1 - keep)
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sglang_respec.errors import RespecError
from sglang_respec.learner.batches import Window, collate
from sglang_respec.learner.eagle3 import Eagle3Drafter
from sglang_respec.learner.objective import distill
from sglang_respec.learner.settings import LearnerSettings

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class StepFigures:
    """One update, for the journal."""

    step: int
    loss: float
    kl: list[float]  # per chain step, weights left out
    overlap: list[float]  # per chain step: sum of min(p, q), the most a scheme can accept
    agreement: list[float]  # per chain step
    grad_norm: float
    tokens: int  # in the batch, without padding
    applied: bool  # false where the loss or the gradient was not finite


def on_device(drafter: Eagle3Drafter, name: str) -> Eagle3Drafter:
    """Move it. Raises `RespecError` for a device that torch does not have here."""
    try:
        return drafter.to(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RespecError(f"The device {name!r} cannot be used ({reason}); try cpu.") from error


class Trainer:
    """A drafter in float32 and its AdamW. Used by one thread.

    ``drafter`` is trained, ``averaged`` is what may serve.
    """

    def __init__(self, drafter: Eagle3Drafter, settings: LearnerSettings) -> None:
        self.drafter = drafter
        self.averaged = copy.deepcopy(drafter).requires_grad_(False)
        self.step = 0
        self._settings = settings
        matrices = [p for p in drafter.parameters() if p.ndim == 2]
        vectors = [p for p in drafter.parameters() if p.ndim != 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay},
             {"params": vectors, "weight_decay": 0.0}],
            lr=settings.learning_rate, betas=BETAS,
        )  # fmt: skip

    def update(self, parts: Sequence[Window]) -> StepFigures:
        """Learn from these windows once."""
        batch = collate(parts, self.drafter, torch.float32)
        objective = distill(self.drafter, batch, self._settings.steps, self._settings.step_decay)
        objective.loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.drafter.parameters(), self._settings.clip_norm))
        loss = objective.loss.item()
        self.step += 1
        applied = math.isfinite(loss) and math.isfinite(norm)
        if applied:
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate()
            self._optimizer.step()
            self._average()
        self._optimizer.zero_grad()
        return StepFigures(
            self.step, loss, objective.kl.tolist(), objective.acceptance.tolist(),
            objective.agreement.tolist(), norm, sum(map(len, parts)), applied,
        )  # fmt: skip

    def state_tensors(self) -> dict[str, Tensor]:
        """Parameters in float32, their averages and the optimiser's moments, by name."""
        tensors = {}
        for name, parameter in self.drafter.named_parameters():
            tensors[f"param.{name}"] = parameter.detach()
            tensors[f"average.{name}"] = self.averaged.get_parameter(name)
            for kind, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{kind}.{name}"] = value.detach().float()
        return {name: each.cpu().contiguous() for name, each in tensors.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from :meth:`state_tensors`. Raises `KeyError` for those of another drafter."""
        for name, parameter in self.drafter.named_parameters():
            parameter.copy_(tensors[f"param.{name}"])
            self.averaged.get_parameter(name).copy_(tensors[f"average.{name}"])
            kinds = ("step", "exp_avg", "exp_avg_sq")
            moments = {k: tensors[f"{k}.{name}"] for k in kinds if f"{k}.{name}" in tensors}
            if moments:
                device = parameter.device
                self._optimizer.state[parameter] = {
                    k: value.clone() if k == "step" else value.to(device, copy=True)
                    for k, value in moments.items()
                }
        self.step = step

    @torch.no_grad()
    def _average(self) -> None:
        for name, parameter in self.drafter.named_parameters():
            self.averaged.get_parameter(name).lerp_(parameter, 1 - self._settings.average)

    def _rate(self) -> float:
        warmup = self._settings.warmup_steps
        return self._settings.learning_rate * min(1.0, self.step / warmup if warmup else 1.0)
