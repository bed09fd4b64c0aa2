"""The distillation objective: KL from the target to every step of an unrolled chain.

Source: EAGLE-3 (arXiv 2503.01840, section 3.2) for the training-time test, SpecForge for the
geometric step weights. With p the target's distribution over the draft vocabulary (restricted
and renormalised), q_s the drafter's at chain step s, m the scored rows and w the sample weights:

    loss = sum_s decay^s / c_s * sum_{b,i} w[b] m[b,i+1+s] KL(p[b,i+1+s] || q_s[b,i])

divided by sum_s decay^s, where c_s is the number of scored rows at step s. Weights do not enter
c_s: the loss is linear in them, and a sample of weight 0 contributes nothing.
Legend as in :mod:`.eagle3`.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_respec.learner.eagle3 import Eagle3Drafter, shift_left


class RowComparison(NamedTuple):
    """Target against drafter, row by row."""

    kl: Tensor  # [R] with gradient
    overlap: Tensor  # [R] sum_x min(p, q)
    agrees: Tensor  # [R] bool: both have the same most likely token


class Distillable(Protocol):
    """A batch as :func:`distill` needs it; how the target's distribution is kept is its own."""

    @property
    def tokens(self) -> Tensor: ...  # [B, T] int64
    @property
    def aux(self) -> Tensor: ...  # [B, T, A*H]
    @property
    def scored(self) -> Tensor: ...  # [B, T] bool
    @property
    def weights(self) -> Tensor: ...  # [B]
    @property
    def positions(self) -> Tensor | None: ...  # [B, T] int64; None: 0, 1, ..

    def shapes(self, drafter: Eagle3Drafter) -> dict[str, tuple[int, ...]]:
        """The shape that each tensor must have for this drafter."""
        ...

    def compare(
        self,
        ahead: int,
        rows: Tensor,  # [B, T] bool
        logits: Tensor,  # [R, D] of the marked rows, in row-major order
    ) -> RowComparison:
        """Logits of row ``i`` against the target's distribution in row ``i + ahead``."""
        ...


@dataclass(frozen=True)
class DistillBatch:
    """What the target said about some of its own rollouts. Rows past a rollout's end are padding
    with ``scored`` false."""

    tokens: Tensor  # [B, T] int64
    aux: Tensor  # [B, T, A*H]: auxiliary hidden states of each token
    target_probs: Tensor  # [B, T, D] float: row t is the distribution of x[t+1] over draft tokens
    scored: Tensor  # [B, T] bool: the distribution in row t counts (x[t+1] was generated)
    weights: Tensor  # [B] float, >= 0, mean about 1
    positions: Tensor | None = None  # [B, T] int64; 0, 1, .. if absent

    def shapes(self, drafter: Eagle3Drafter) -> dict[str, tuple[int, ...]]:
        rows = tuple(self.tokens.shape)
        return {**common_shapes(rows, drafter), "target_probs": (*rows, len(drafter.d2t))}

    def compare(self, ahead: int, rows: Tensor, logits: Tensor) -> RowComparison:
        probs = shift_left(self.target_probs, ahead)[rows]
        divergence = kl_divergence(probs, logits)
        with torch.no_grad():
            wide = logits.to(probs.dtype)
            overlap = torch.minimum(probs, wide.softmax(-1)).sum(-1)
            return RowComparison(divergence, overlap, probs.argmax(-1) == wide.argmax(-1))


@dataclass(frozen=True)
class Objective:
    loss: Tensor  # [] with gradient
    kl: Tensor  # [S] mean over scored rows, weights left out
    acceptance: Tensor  # [S] mean of sum_x min(p, q): the best any sampling scheme can accept
    agreement: Tensor  # [S] share of rows whose most likely token is the target's


def restrict_to_draft_vocab(
    logits: Tensor,  # [..., V]
    draft_ids: Tensor,  # [D] int64
    temperature: float = 1.0,
) -> Tensor:  # [..., D] float32 (float64 stays), rows sum to 1
    """The target's distribution given that the token is in the draft vocabulary."""
    if temperature <= 0:
        raise ValueError(
            f"temperature is {temperature}; distil at the sampling temperature, or at 1.0 for a "
            "drafter that serves greedy decoding too"
        )
    wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
    return (logits[..., draft_ids].to(wide) / temperature).softmax(-1)


def distill(
    drafter: Eagle3Drafter,
    batch: Distillable,
    steps: int,
    step_decay: float = 0.8,
) -> Objective:
    _check_batch(drafter, batch, steps)
    total: Tensor | float = 0.0
    kl, acceptance, agreement = [], [], []
    for step, logits in enumerate(drafter.unroll(batch.aux, batch.tokens, steps, batch.positions)):
        rows = shift_left(batch.scored, 1 + step)
        found = batch.compare(1 + step, rows, logits[rows])
        count = max(len(found.kl), 1)
        row_weights = batch.weights[:, None].expand_as(rows)[rows]
        total = total + step_decay**step * (row_weights * found.kl).sum() / count
        kl.append(found.kl.detach().sum() / count)
        acceptance.append(found.overlap.sum() / count)
        agreement.append(found.agrees.sum() / count)
    scale = sum(step_decay**step for step in range(steps))
    stacked = (torch.stack(rows).detach() for rows in (kl, acceptance, agreement))
    return Objective(total / scale, *stacked)


def kl_divergence(
    probs: Tensor,  # [R, D]; rows sum to 1
    logits: Tensor,  # [R, D]
) -> Tensor:  # [R] in the precision of probs, >= 0 up to rounding
    """KL(p || softmax(logits)) = -sum p log q - H(p); zeros of p cost nothing."""
    cross_entropy = -(probs * F.log_softmax(logits.to(probs.dtype), dim=-1)).sum(-1)
    return cross_entropy - torch.special.entr(probs).sum(-1)


def common_shapes(rows: tuple[int, ...], drafter: Eagle3Drafter) -> dict[str, tuple[int, ...]]:
    """What every kind of batch of ``rows`` = (B, T) must have."""
    config = drafter.config
    width = config.num_aux_hidden_states * config.target_hidden_size
    return {"aux": (*rows, width), "scored": rows, "weights": rows[:1]}


def _check_batch(drafter: Eagle3Drafter, batch: Distillable, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}; unroll at least one step, best as many as are served")
    rows = tuple(batch.tokens.shape)
    for name, shape in batch.shapes(drafter).items():
        found = tuple(getattr(batch, name).shape)
        if found != shape:
            raise ValueError(f"{name} is {found}, this drafter and tokens {rows} need {shape}")
