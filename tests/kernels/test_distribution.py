"""Coupled sampling is exact sampling: chi-square tests of the reference, at alpha = 1e-4.

The draws are hashes of consecutive seeds and positions, so that the tests see the streams that a
server uses. They are the same in every run.
"""

from __future__ import annotations

import pytest
import torch
from sampling_cases import parameter_tensors
from sampling_oracle import Parameters, allowed, softmax
from tree_cases import random_trees, table

from respec_kernels import sample_rows, verify_sampled_tree
from respec_kernels.reference.noise import gumbel, murmur_hash32

TRIALS = 32_000
ALPHA = 1e-4
LOGITS = [1.5, -0.5, 0.0, 2.2, -3.0, 0.7, 0.7, -1.0, 1.1, -float("inf"), 0.3, -2.0]
FILTERS = {
    "none": Parameters(),
    "temperature": Parameters(temperature=1.7),
    "top_k": Parameters(top_k=4),
    "top_p": Parameters(top_p=0.8),
    "min_p": Parameters(min_p=0.2),
    "all": Parameters(temperature=1.3, top_k=6, top_p=0.9, min_p=0.15),
}


def exact(logits: list[float], parameters: Parameters) -> torch.Tensor:
    """Probabilities of a row, filters applied."""
    row = [z / parameters.temperature for z in logits]
    kept = set(allowed(row, parameters))
    probs = torch.tensor([p if v in kept else 0.0 for v, p in enumerate(softmax(row))])
    return probs.double() / probs.double().sum()


def p_value(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """Pearson's test; a count where the probability is zero is a failure outright."""
    counts, probs = counts.double().flatten(), probs.double().flatten()
    assert counts[probs == 0].sum() == 0, "an impossible token was drawn"
    possible = probs > 0
    expected = probs[possible] * counts.sum()
    assert expected.min() >= 5, "the test needs more trials"
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = torch.tensor((possible.sum().item() - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()


def drawn(
    logits: list[float], parameters: Parameters, positions: torch.Tensor, seeds: torch.Tensor
) -> torch.Tensor:
    rows = len(positions)
    one = parameter_tensors([parameters])
    named = {name: each.expand(rows).contiguous() for name, each in one.items()}
    return sample_rows(
        torch.tensor(logits).expand(rows, -1), positions, None, **named | {"seeds": seeds},
        filtered=parameters != Parameters(temperature=parameters.temperature),
    )[0]  # fmt: skip


def test_the_test_can_fail() -> None:
    """Two per cent of the draws moved from one token to another are noticed."""
    probs = exact(LOGITS, Parameters())
    counts = (probs * TRIALS).round()
    assert p_value(counts, probs) > 0.99
    counts[3] -= 0.02 * TRIALS
    counts[5] += 0.02 * TRIALS
    assert p_value(counts, probs) < ALPHA


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("stream", ["positions", "seeds"])
def test_one_row(name: str, stream: str) -> None:
    running, fixed = torch.arange(TRIALS), torch.full((TRIALS,), 12_345)
    positions, seeds = (running, fixed) if stream == "positions" else (fixed, running)
    tokens = drawn(LOGITS, FILTERS[name], positions, seeds)
    counts = torch.bincount(tokens, minlength=len(LOGITS))
    assert p_value(counts, exact(LOGITS, FILTERS[name])) > ALPHA


@pytest.mark.parametrize("neighbour", ["position", "seed", "high word of the seed"])
def test_neighbouring_streams_are_independent(neighbour: str) -> None:
    logits = [0.0, 0.5, -0.5, 1.0]
    first = torch.arange(0, 2 * TRIALS, 2)
    fixed = torch.full((TRIALS,), 7)
    if neighbour == "position":
        draws = [drawn(logits, Parameters(), first + step, fixed) for step in (0, 1)]
    else:
        step = 1 if neighbour == "seed" else 1 << 32
        draws = [drawn(logits, Parameters(), fixed, first + each) for each in (0, step)]
    probs = exact(logits, Parameters())
    counts = torch.bincount(4 * draws[0] + draws[1], minlength=16)
    assert p_value(counts, probs[:, None] * probs[None, :]) > ALPHA


def test_noise_of_neighbouring_ids_is_independent() -> None:
    """Quartiles of the Gumbel distribution, jointly for ids v and v + 1."""
    seeds = torch.arange(TRIALS // 8)
    noise = gumbel(murmur_hash32(seeds, torch.full_like(seeds, 3), torch.arange(100, 116)))
    quartile = torch.bucketize((-noise.neg().exp()).exp(), torch.tensor([0.25, 0.5, 0.75]).double())
    pairs = 4 * quartile[:, ::2] + quartile[:, 1::2]
    counts = torch.bincount(pairs.flatten(), minlength=16)
    assert p_value(counts, torch.full((16,), 1 / 16)) > ALPHA


SMALL = torch.tensor(
    [
        [0.5, 0.0, 1.0, -0.7, 0.2],
        [1.2, 1.2, -1.0, 0.1, 0.0],
        [-0.3, 0.8, 0.4, 0.4, -1.5],
        [0.0, 0.0, 0.0, 0.9, 0.3],
        [0.6, -0.9, 0.1, 0.2, 1.3],
    ]
)
SHAPES = {"chain": 1, "tree": 3}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_committed_tokens(shape: str, name: str) -> None:
    """Two tokens of a Markov chain: whatever was drafted, plain decoding's, and distributed right.

    Row x of SMALL is the target after token x. Drafts are random, so some walks commit two tokens
    and others one; the second of these is then sampled plainly, as a server's next step would.
    """
    parameters, nodes, vocabulary = FILTERS[name], 6, 5
    distinct = random_trees(SHAPES[shape], 200, nodes, SHAPES[shape])
    times = TRIALS // len(distinct)
    generator = torch.Generator().manual_seed(1)
    candidates = torch.randint(vocabulary, (TRIALS, nodes), generator=generator)
    candidates[:, 0] = 3
    depths = table([tree.depths() for tree in distinct], nodes, "cpu").repeat(times, 1)
    filtered = parameters != Parameters(temperature=parameters.temperature)
    seeds, start = torch.arange(TRIALS), 50
    each = parameter_tensors([parameters])
    named = {key: value.expand(TRIALS).contiguous() for key, value in each.items()}
    named["seeds"] = seeds
    found = verify_sampled_tree(
        SMALL[candidates.flatten()],
        (start + depths).flatten(),
        candidates,
        torch.arange(TRIALS * nodes).view(TRIALS, nodes),
        table([tree.first_children() for tree in distinct], nodes, "cpu").repeat(times, 1),
        table([tree.next_siblings() for tree in distinct], nodes, "cpu").repeat(times, 1),
        **named,
        filtered=filtered,
        max_depth=4,
    )
    first = found.predicts[found.accept_index[:, 0].long()].long()
    position = torch.full((TRIALS,), start)
    plain, _ = sample_rows(SMALL[3].expand(TRIALS, -1), position, None, **named, filtered=filtered)
    plain_next, _ = sample_rows(SMALL[plain], position + 1, None, **named, filtered=filtered)
    two = found.accept_token_num > 0
    second = torch.where(two, found.predicts[found.accept_index[:, 1].long()].long(), plain_next)
    assert 0.1 < two.double().mean() < 0.9
    assert torch.equal(first, plain)
    assert torch.equal(second, plain_next)
    rows = torch.stack([exact(row.tolist(), parameters) for row in SMALL])
    counts = torch.bincount(vocabulary * first + second, minlength=vocabulary**2)
    assert p_value(counts, rows[3][:, None] * rows) > ALPHA
    # Among walks that committed two, the second token follows the first's row.
    accepted = torch.bincount(vocabulary * first[two] + second[two], minlength=vocabulary**2)
    accepted = accepted.view(vocabulary, vocabulary)
    for token in range(vocabulary):
        if rows[3][token] > 0:
            assert p_value(accepted[token], rows[token]) > ALPHA / vocabulary


@pytest.mark.parametrize("name", FILTERS)
def test_the_filters_do_filter(name: str) -> None:
    """Each leaves possible tokens out, and more than one in."""
    kept = allowed(LOGITS, FILTERS[name])
    assert len(kept) >= 3
    assert (len(kept) < len(LOGITS) - 1) == (name not in ("none", "temperature"))
