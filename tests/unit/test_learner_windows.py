"""Batches of rollouts, the objective on them, coupled acceptance against a served chain."""

from dataclasses import replace

import pytest
import torch
from learner_toys import VOCAB, make_drafter, markov_rollout

from respec_kernels import draft_topk, sample_rows
from sglang_respec.learner.acceptance import chain_hits, measure, walk
from sglang_respec.learner.batches import collate, windows
from sglang_respec.learner.objective import DistillBatch, distill, restrict_to_draft_vocab
from sglang_respec.learner.samples import RolloutSample
from sglang_respec.learner.settings import LearnerSettings
from sglang_respec.learner.trainer import Trainer

STEPS = 3


def test_a_batch_with_everything_listed_has_the_dense_loss() -> None:
    drafter = make_drafter().double()
    samples = [markov_rollout(i, tokens=20 + 4 * i, listed=VOCAB) for i in range(3)]
    parts = [w for i, s in enumerate(samples) for w in windows(s, 64, weight=0.5 + i)]
    batch = collate(parts, drafter, torch.float64)
    logprobs = torch.zeros(*batch.tokens.shape, VOCAB, dtype=torch.float64)
    for row, sample in enumerate(samples):
        here = range(sample.prompt_tokens - 1, len(sample.tokens) - 1)
        for g, t in enumerate(here):
            logprobs[row, t, sample.top_ids[g].long()] = sample.top_logprobs[g].double()
    dense = DistillBatch(
        batch.tokens, batch.aux, restrict_to_draft_vocab(logprobs, drafter.draft_ids),
        batch.scored, batch.weights,
    )  # fmt: skip
    found, expected = distill(drafter, batch, STEPS), distill(drafter, dense, STEPS)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.kl, expected.kl)
    torch.testing.assert_close(found.acceptance, expected.acceptance)
    assert torch.equal(found.agreement, expected.agreement)


def test_the_temperature_of_a_rollout_is_that_of_its_comparison() -> None:
    drafter = make_drafter().double()
    cool = markov_rollout(0, temperature=0.5, listed=VOCAB)
    (part,) = windows(cool, 64)
    batch = collate([part], drafter, torch.float64)
    found = distill(drafter, batch, 1)
    (logits,) = drafter.unroll(batch.aux, batch.tokens, 1, batch.positions)
    rows = list(part.scored_rows)
    ids = cool.top_ids.long()
    full = torch.zeros(len(rows), VOCAB, dtype=torch.float64)
    full.scatter_(1, ids, cool.top_logprobs.double())
    p = restrict_to_draft_vocab(full, drafter.draft_ids)
    q = (logits[0, [r - 1 for r in rows]] / 0.5).log_softmax(1)
    expected = (p * (p.log() - q)).sum(1).mean()
    torch.testing.assert_close(found.kl[0], expected.detach())


def test_the_loss_of_windows_is_finite_difference_true() -> None:
    drafter = make_drafter().double()
    parts = list(windows(markov_rollout(1, tokens=90), 64, weight=1.7))
    batch = collate(parts, drafter, torch.float64)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        state = {"drafter.fc.weight": weight}
        return torch.func.functional_call(_Loss(drafter, batch), state, ())

    assert torch.autograd.gradcheck(loss, (drafter.fc.weight,), fast_mode=True)


class _Loss(torch.nn.Module):
    def __init__(self, drafter: torch.nn.Module, batch: object) -> None:
        super().__init__()
        self.drafter, self.batch = drafter, batch

    def forward(self) -> torch.Tensor:
        return distill(self.drafter, self.batch, STEPS).loss


def test_hidden_states_of_a_cached_prompt_may_be_missing() -> None:
    drafter = make_drafter()
    sample = markov_rollout(2, prompt_tokens=12, first_aux=9)
    (part,) = windows(sample, 64)
    batch = collate([part], drafter, torch.float32)
    assert batch.positions[0].tolist() == list(range(9, 30))
    assert batch.tokens[0].tolist() == sample.tokens[9:].tolist()
    assert torch.equal(batch.aux[0, :-1], sample.aux)
    assert int(batch.scored.sum()) == sample.generated_tokens


@torch.no_grad()
def served_rounds(drafter: torch.nn.Module, sample: RolloutSample, steps: int) -> list[int]:
    """What a server with a chain does, round by round, on growing prefixes of the rollout: draft
    with its own guesses as input, verify by sampling the target, commit."""
    tokens, total = sample.tokens.long(), len(sample.tokens)
    greedy = sample.temperature == 0
    heat = torch.tensor([sample.temperature or 1.0])
    kinds = torch.tensor([1 if greedy else VOCAB], dtype=torch.int32)
    seeds = torch.tensor([sample.seed])
    committed, known = [], sample.prompt_tokens + 1
    while known < total:
        guessed: list[int] = []
        for step in range(steps):
            line = torch.cat([tokens[:known], torch.tensor(guessed, dtype=torch.int64)])
            aux = torch.zeros(1, len(line), sample.aux.shape[1])
            aux[0, : known - 1] = sample.aux[: known - 1]
            logits = drafter.unroll(aux, line[None], step + 1)[step][0, known - 2]
            position = torch.tensor([known - 1 + step])
            _, best = draft_topk(
                logits[None], position, None, heat, kinds, seeds, drafter.draft_ids, 1
            )
            guessed.append(int(drafter.draft_ids[best[0, 0]]))
        accepted = 0
        while (
            accepted < steps
            and known + accepted < total
            and guessed[accepted] == int(tokens[known + accepted])
        ):
            accepted += 1
        gain = min(accepted + 1, total - known)
        committed.append(gain)
        known += gain
    return committed


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_measured_acceptance_is_what_a_served_chain_commits(temperature: float) -> None:
    torch.manual_seed(5)
    drafter = make_drafter(4).eval()
    samples = [markov_rollout(i, temperature=temperature, tokens=40) for i in range(6)]
    rounds = [served_rounds(drafter, sample, STEPS) for sample in samples]
    found = measure(drafter, samples, STEPS, window=64, batch_tokens=128)
    assert found.tokens == sum(map(sum, rounds))
    assert found.rounds == sum(map(len, rounds))
    assert any(gain > 1 for each in rounds for gain in each)


def test_rollouts_are_what_coupled_sampling_draws() -> None:
    """The toy rollouts obey the rule by which the drafter's guesses are ranked."""
    sample = markov_rollout(3, listed=VOCAB)
    for g in range(sample.generated_tokens):
        logits = torch.zeros(1, VOCAB)
        logits[0, sample.top_ids[g].long()] = sample.top_logprobs[g]
        drawn, _ = sample_rows(
            logits, torch.tensor([sample.prompt_tokens + g - 1]), None, torch.ones(1),
            torch.tensor([VOCAB], dtype=torch.int32), torch.ones(1), torch.zeros(1),
            torch.tensor([sample.seed]), filtered=False,
        )  # fmt: skip
        assert int(drawn) == int(sample.tokens[sample.prompt_tokens + g])


def test_greedy_acceptance_agrees_with_chain_hits() -> None:
    drafter = make_drafter(1)
    sample = markov_rollout(7, temperature=0.0, tokens=50)
    aux = torch.nn.functional.pad(sample.aux, (0, 0, 0, 1))[None]
    with torch.no_grad():
        hits = chain_hits(drafter, aux, sample.tokens.long()[None], STEPS)[0]
    rounds = walk(hits, sample.prompt_tokens, len(sample.tokens))
    found = measure(drafter, [sample], STEPS, window=64, batch_tokens=64)
    assert (found.tokens, found.rounds) == (sum(rounds), len(rounds))


def test_noise_helps_a_drafter_that_knows_the_target() -> None:
    """Ranked with the request's noise, a drafter guesses what is drawn and not what is likeliest:
    the same weights without it accept less."""
    drafter = make_drafter(2)
    samples = [markov_rollout(i, tokens=60) for i in range(24)]
    settings = LearnerSettings(steps=STEPS, learning_rate=0.02, warmup_steps=0, clip_norm=10.0)
    trainer = Trainer(drafter, settings)
    before = measure(drafter, samples, STEPS, window=64, batch_tokens=2048)
    parts = [w for s in samples for w in windows(s, 64)]
    first = trainer.update(parts)
    for _ in range(60):
        last = trainer.update(parts)
    after = measure(drafter, samples, STEPS, window=64, batch_tokens=2048)
    assert last.kl[0] < 0.5 * first.kl[0]
    assert after.length > before.length
    blind = [replace(sample, seed=sample.seed + 1) for sample in samples]
    assert measure(drafter, blind, STEPS, window=64, batch_tokens=2048).length < after.length


def test_too_short_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="8 or more"):
        list(windows(markov_rollout(0), 7))
    with pytest.raises(ValueError, match="too short for chains"):
        measure(make_drafter(), [markov_rollout(0)], 8, window=64, batch_tokens=64)
