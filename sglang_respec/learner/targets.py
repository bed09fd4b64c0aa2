"""The target's distribution as a server can afford to send it: the top K tokens and a tail mass.

Per row the target listed K tokens with their probabilities p(v) and m = 1 - sum p(v), the mass of
all others. The drafter speaks a vocabulary D of draft tokens. What can be compared are the
outcomes {each listed token in D} and {any other token of D}:

    s      = m + sum of p over listed tokens in D         (listed tokens outside D are left out)
    p~(v)  = p(v) / s,   p~(rest) = m / s
    KL     = sum_v p~(v) log(p~(v) / q(v)) + p~(rest) log(p~(rest) / q(rest))

with q(rest) = 1 - sum q over the listed tokens, taken as a log-sum-exp of the other logits. The
tail is taken to lie in D, which a drafter trained on what the target says makes nearly true. By
the data-processing inequality this never exceeds the KL over all of D, and where the listed
tokens cover D there is no tail and it *is* that KL.

A row whose s is below ``LEAST_MASS`` says nothing about D (float32 cannot tell it from 0) and
counts as not scored. Legend: N rows, K listed tokens, V target vocabulary, D draft vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_MASS = 2.0**-16


@dataclass(frozen=True)
class TopTargets:
    """Distributions in terms of draft tokens, ready to be compared with a drafter's logits."""

    slots: Tensor  # [N, K] int64 draft ids, -1 where the listed token is not in D
    probs: Tensor  # [N, K] p~ of the listed tokens, 0 where not in D
    rest: Tensor  # [N] p~ of all other draft tokens
    usable: Tensor  # [N] bool: the row says something about D

    def __getitem__(self, rows: Tensor) -> "TopTargets":
        return TopTargets(self.slots[rows], self.probs[rows], self.rest[rows], self.usable[rows])


def draft_slots(
    draft_ids: Tensor,  # [D] int64
    vocab_size: int,
) -> Tensor:  # [V] int64: the draft id of a target token, -1 where it has none
    slots = torch.full((vocab_size,), -1, dtype=torch.int64, device=draft_ids.device)
    slots[draft_ids] = torch.arange(len(draft_ids), device=draft_ids.device)
    return slots


def to_draft_vocab(
    top_ids: Tensor,  # [N, K] integer target ids, distinct in a row; -1 lists nothing
    top_logprobs: Tensor,  # [N, K] float
    tail_mass: Tensor,  # [N] float
    slots_of: Tensor,  # [V] int64, of draft_slots
    draft_vocab_size: int,
) -> TopTargets:
    ids = top_ids.long()
    slots = slots_of[ids.clamp(min=0)].masked_fill(ids < 0, -1)
    listed = slots >= 0
    probs = top_logprobs.exp() * listed
    covered = listed.sum(1) == draft_vocab_size  # no draft token is left for a tail
    tail = tail_mass.to(probs.dtype).masked_fill(covered, 0.0)
    mass = probs.sum(1) + tail
    usable = mass >= LEAST_MASS
    scale = torch.where(usable, mass, 1.0)
    return TopTargets(slots, probs / scale[:, None], tail / scale, usable)


def top_kl(targets: TopTargets, logits: Tensor) -> Tensor:  # [N, D] -> [N], >= 0 up to rounding
    """The KL above, in the precision of the targets, with a gradient in ``logits`` that is finite
    for finite logits; nothing of probability 0 costs anything."""
    log_q, log_q_rest = _log_q(targets, logits)
    cross_entropy = -(targets.probs * log_q).sum(1) - targets.rest * log_q_rest
    entropy = torch.special.entr(targets.probs).sum(1) + torch.special.entr(targets.rest)
    return cross_entropy - entropy


@torch.no_grad()
def top_overlap(targets: TopTargets, logits: Tensor) -> Tensor:  # [N, D] -> [N]
    """sum over outcomes of min(p~, q): at most what an optimal scheme could accept of the tail
    besides, exact where there is none."""
    log_q, log_q_rest = _log_q(targets, logits)
    q_rest = log_q_rest.exp().masked_fill(targets.rest == 0, 0.0)
    q = log_q.exp() * (targets.slots >= 0)
    return torch.minimum(targets.probs, q).sum(1) + torch.minimum(targets.rest, q_rest)


@torch.no_grad()
def top_agreement(targets: TopTargets, logits: Tensor) -> Tensor:  # [N, D] -> [N] bool
    """Whether the drafter's most likely token is the target's most likely one within D."""
    best = targets.probs.argmax(1, keepdim=True)
    return targets.slots.gather(1, best)[:, 0] == logits.argmax(1)


def _log_q(targets: TopTargets, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N, K] of the listed tokens (0 where not in D) and [N] of the rest (0
    where the target gives the rest nothing, so that an empty rest has no logarithm)."""
    wide = logits.to(targets.probs.dtype)
    normaliser = wide.logsumexp(1)
    listed = targets.slots >= 0
    at = targets.slots.clamp(min=0)
    log_q = (wide.gather(1, at) - normaliser[:, None]).masked_fill(~listed, 0.0)
    # One column more than D takes the marks of listed tokens outside D.
    marks = torch.zeros(len(wide), wide.shape[1] + 1, dtype=torch.bool, device=wide.device)
    marks.scatter_(1, at.masked_fill(~listed, wide.shape[1]), True)
    nothing = targets.rest == 0
    hidden = marks[:, :-1] & ~nothing[:, None]
    rest = wide.masked_fill(hidden, -torch.inf).logsumexp(1) - normaliser
    return log_q, rest.masked_fill(nothing, 0.0)
