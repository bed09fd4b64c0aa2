"""KL against the top K and a tail: float64 sums, finite differences, and what K = V gives."""

from itertools import pairwise

import pytest
import torch
from learner_toys import DRAFT_IDS, VOCAB
from torch import Tensor

from sglang_respec.learner.objective import kl_divergence, restrict_to_draft_vocab
from sglang_respec.learner.targets import (
    TopTargets,
    draft_slots,
    to_draft_vocab,
    top_agreement,
    top_kl,
    top_overlap,
)

ROWS = 6


def listing(
    target: Tensor, listed: int, draft_ids: Tensor = DRAFT_IDS
) -> tuple[TopTargets, Tensor, Tensor]:
    logprobs, ids = target.log_softmax(1).topk(listed, dim=1)
    tail = (1 - logprobs.exp().sum(1)).clamp(min=0)
    slots = draft_slots(draft_ids, VOCAB)
    return to_draft_vocab(ids, logprobs, tail, slots, len(draft_ids)), ids, logprobs


def draw(columns: int = len(DRAFT_IDS)) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    target = 2 * torch.randn(ROWS, VOCAB, dtype=torch.float64)
    return target, torch.randn(ROWS, columns, dtype=torch.float64)


@pytest.mark.parametrize("listed", [1, 3, 8, 12])
def test_the_kl_is_the_sum_over_outcomes(listed: int) -> None:
    target, logits = draw()
    targets, ids, logprobs = listing(target, listed)
    kl, overlap = top_kl(targets, logits), top_overlap(targets, logits)
    for row in range(ROWS):
        q = logits[row].exp() / logits[row].exp().sum()
        p = {int(v): float(lp.exp()) for v, lp in zip(ids[row], logprobs[row], strict=True)}
        inside = {DRAFT_IDS.tolist().index(v): mass for v, mass in p.items() if v in DRAFT_IDS}
        tail = 1 - sum(p.values())
        if len(inside) == len(DRAFT_IDS):
            tail = 0.0
        whole = tail + sum(inside.values())
        expected = least = 0.0
        for slot, mass in inside.items():
            expected += mass / whole * float((mass / whole / q[slot]).log())
            least += min(mass / whole, float(q[slot]))
        if tail:
            rest = float(sum(q[slot] for slot in range(len(q)) if slot not in inside))
            share = torch.tensor(tail / whole, dtype=torch.float64)
            expected += float(share * (share / rest).log())
            least += min(float(share), rest)
        assert kl[row].item() == pytest.approx(expected, abs=1e-12)
        assert overlap[row].item() == pytest.approx(least, abs=1e-12)


def test_all_tokens_listed_is_the_full_kl() -> None:
    target, logits = draw()
    targets, _, _ = listing(target, VOCAB)
    full = restrict_to_draft_vocab(target, DRAFT_IDS)
    torch.testing.assert_close(top_kl(targets, logits), kl_divergence(full, logits))
    assert torch.equal(top_agreement(targets, logits), full.argmax(1) == logits.argmax(1))
    exact = torch.minimum(full, logits.softmax(1)).sum(1)
    torch.testing.assert_close(top_overlap(targets, logits), exact)


def test_the_whole_vocabulary_drafted_and_listed_is_the_full_kl() -> None:
    target, logits = draw(VOCAB)
    targets, _, _ = listing(target, VOCAB, torch.arange(VOCAB))
    torch.testing.assert_close(top_kl(targets, logits), kl_divergence(target.softmax(1), logits))


def test_the_full_kl_is_a_limit_from_below() -> None:
    target, logits = draw(VOCAB)
    everything = torch.arange(VOCAB)
    found = [top_kl(listing(target, k, everything)[0], logits) for k in range(1, VOCAB + 1)]
    for coarse, fine in pairwise(found):
        assert bool((coarse <= fine + 1e-12).all())
    assert bool((found[0] >= -1e-12).all())


@pytest.mark.parametrize("listed", [2, 7, 13])
def test_gradients_agree_with_finite_differences(listed: int) -> None:
    target, logits = draw()
    targets, _, _ = listing(target, listed)
    assert torch.autograd.gradcheck(lambda x: top_kl(targets, x), (logits.requires_grad_(),))


def test_float32_stays_near_float64() -> None:
    target, logits = draw()
    wide, _, _ = listing(target, 5)
    narrow, _, _ = listing(target.float(), 5)
    # A sum of 6 terms near 1, each a product of numbers rounded to 2^-24, after a softmax of 7.
    torch.testing.assert_close(
        top_kl(narrow, logits.float()).double(), top_kl(wide, logits), atol=2e-6, rtol=2e-6
    )


def test_a_row_about_other_tokens_does_not_count() -> None:
    slots = draft_slots(DRAFT_IDS, VOCAB)
    ids = torch.tensor([[1, 4], [2, 1]])  # 1 and 4 are no draft tokens
    logprobs = torch.tensor([[0.6, 0.4], [0.5, 0.5]]).log()
    targets = to_draft_vocab(ids, logprobs, torch.zeros(2), slots, len(DRAFT_IDS))
    assert targets.usable.tolist() == [False, True]
    logits = torch.randn(2, 7, requires_grad=True)
    kl = top_kl(targets, logits)
    assert kl[1].item() == pytest.approx(-logits.log_softmax(1)[1, 1].item(), abs=1e-6)
    kl.sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_nothing_listed_is_no_token_zero() -> None:
    slots = draft_slots(DRAFT_IDS, VOCAB)
    ids = torch.tensor([[2, -1, -1]])
    logprobs = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    targets = to_draft_vocab(ids, logprobs, torch.zeros(1), slots, len(DRAFT_IDS))
    assert targets.slots.tolist() == [[1, -1, -1]]
    assert targets.probs.tolist() == [[1.0, 0.0, 0.0]]


def test_a_drafter_that_is_certain_and_wrong_has_a_finite_gradient() -> None:
    target, _ = draw()
    targets, _, _ = listing(target.float(), 4)
    logits = torch.full((ROWS, 7), -1e4)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    kl = top_kl(targets, logits)
    kl.sum().backward()
    assert bool(kl.isfinite().all())
    assert bool(logits.grad.isfinite().all())
