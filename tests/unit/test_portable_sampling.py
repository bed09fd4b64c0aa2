"""The CPU's verification sampling: exact against a walk per request, and right in distribution.

Probabilities are multiples of 2^-10 and coins of 2^-12, so that float32 sums, products and
comparisons are exact and a reference in Python floats must agree bit for bit.
"""

import math
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_respec.upstream.portable.sampling_ops import (
    top_k_renorm_prob,
    top_p_renorm_prob,
    tree_speculative_sampling_target_only,
)

UNIT, COIN_UNIT = 1 << 10, 1 << 12
UNWRITTEN = -7
ALPHA = 1e-4
TRIALS = 40_000


def dyadic(
    rows: int, vocabulary: int, generator: torch.Generator, zeros: float, skew: float = 3
) -> torch.Tensor:
    """[rows, V] probabilities in units of 1 / UNIT that sum to one, some of them zero."""
    weights = torch.rand(rows, vocabulary, generator=generator) ** skew
    weights[torch.rand(rows, vocabulary, generator=generator) < zeros] = 0
    weights[:, 0] += weights.sum(-1) == 0
    counts = (weights / weights.sum(-1, keepdim=True) * UNIT).floor()
    largest = counts.argmax(-1, keepdim=True)
    counts.scatter_add_(1, largest, UNIT - counts.sum(-1, keepdim=True))
    return counts / UNIT


def dyadic_coins(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, COIN_UNIT, shape, generator=generator) / COIN_UNIT


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 60))
def test_top_k(seed: int, vocabulary: int, top_k: int) -> None:
    """The k largest and whatever ties with the k-th; a k past the vocabulary keeps all."""
    probs = dyadic(3, vocabulary, torch.Generator().manual_seed(seed), zeros=0.3)
    got = top_k_renorm_prob(probs, torch.tensor([top_k, 1, vocabulary]))
    for row, k in enumerate((top_k, 1, vocabulary)):
        listed = probs[row].tolist()
        threshold = sorted(listed, reverse=True)[min(k, vocabulary) - 1]
        kept = [each if each >= threshold else 0.0 for each in listed]
        want = [each / sum(kept) for each in kept]  # both sums are exact
        assert got[row].tolist() == pytest.approx(want, rel=2**-23, abs=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, UNIT), st.integers(1, 40))
def test_top_p(seed: int, vocabulary: int, top_p: int, run: int) -> None:
    """The shortest run of most probable tokens whose mass reaches top_p, and nothing more."""
    probs = dyadic(3, vocabulary, torch.Generator().manual_seed(seed), zeros=0.3)
    reached_exactly = sum(sorted(probs[1].tolist(), reverse=True)[:run])
    top_ps = [top_p / UNIT, reached_exactly, 1.0]
    got = top_p_renorm_prob(probs, torch.tensor(top_ps))
    for row, p in enumerate(top_ps):
        listed = probs[row].tolist()
        kept: list[float] = []
        for each in sorted(listed, reverse=True):
            if sum(kept) < p:
                kept.append(each)
        result = got[row].tolist()
        # Among equal probabilities at the border either may stay: compare what was kept.
        want = sorted((each / sum(kept) for each in kept if each > 0), reverse=True)
        assert sorted((each for each in result if each > 0), reverse=True) == pytest.approx(
            want, rel=2**-23, abs=0
        )
        assert all(
            each == pytest.approx(before / sum(kept), rel=2**-23, abs=0)
            for each, before in zip(result, listed, strict=True)
            if each > 0
        )


@dataclass
class Trees:
    """One random draft tree per request, in the layout that SGLang's tree builder gives."""

    candidates: torch.Tensor  # [B, n]
    index: torch.Tensor  # [B, n] flat node numbers
    next_token: torch.Tensor  # [B, n] first child or -1
    next_sibling: torch.Tensor  # [B, n] or -1


def trees_of(parents: list[list[int]], candidates: torch.Tensor) -> Trees:
    """parents: one list per request, or a single one that all of them share."""
    batch, nodes = candidates.shape
    next_token = torch.full((len(parents), nodes), -1)
    next_sibling = torch.full((len(parents), nodes), -1)
    for tree, parent_of in enumerate(parents):
        for node in reversed(range(1, nodes)):
            next_sibling[tree, node] = next_token[tree, parent_of[node]]
            next_token[tree, parent_of[node]] = node
    return Trees(
        candidates,
        torch.arange(batch * nodes).view(batch, nodes),
        next_token.expand(batch, nodes),
        next_sibling.expand(batch, nodes),
    )


@dataclass
class Verified:
    predicts: torch.Tensor  # [B, n]
    accept_index: torch.Tensor  # [B, depth]
    accepted: torch.Tensor  # [B]


def verify(
    trees: Trees,
    probs: torch.Tensor,  # [B, n, V]
    coins: torch.Tensor,  # [B, n]
    last_coins: torch.Tensor,  # [B]
    depth: int,
    single: float = 1.0,
    acc: float = 1.0,
) -> Verified:
    batch, nodes = trees.candidates.shape
    predicts = torch.full((batch * nodes,), UNWRITTEN, dtype=torch.int32)
    accept_index = torch.full((batch, depth), -1, dtype=torch.int32)
    accepted = torch.full((batch,), UNWRITTEN, dtype=torch.int32)
    tree_speculative_sampling_target_only(
        predicts=predicts,
        accept_index=accept_index,
        accept_token_num=accepted,
        candidates=trees.candidates,
        retrive_index=trees.index,
        retrive_next_token=trees.next_token,
        retrive_next_sibling=trees.next_sibling,
        uniform_samples=coins,
        uniform_samples_for_final_sampling=last_coins,
        target_probs=probs,
        draft_probs=torch.zeros_like(probs),
        threshold_single=single,
        threshold_acc=acc,
    )
    return Verified(predicts.view(batch, nodes), accept_index, accepted)


def walk(
    trees: Trees, b: int, probs: torch.Tensor, coins: list[float], last_coin: float,
    depth: int, single: float, acc: float,
) -> tuple[dict[int, int], list[int]]:  # fmt: skip
    """One request, as SGLang's CUDA kernel walks it: {node: committed token}, accepted nodes."""
    committed: dict[int, int] = {}
    path, rejected, mass, coin = [0], set[int](), 0.0, coins[0]
    row = probs[b, 0].tolist()
    child = int(trees.next_token[b, 0])
    while child >= 0 and len(path) < depth:
        token = int(trees.candidates[b, child])
        mass += row[token]
        if row[token] > 0 and (coin < mass / acc or row[token] >= single):
            committed[path[-1]] = token
            path.append(child)
            row, rejected, mass, coin = probs[b, child].tolist(), set(), 0.0, coins[child]
            child = int(trees.next_token[b, child])
        else:
            rejected.add(token)
            child = int(trees.next_sibling[b, child])
    if len(path) == depth:
        rejected = set()
    left = [0.0 if token in rejected else each for token, each in enumerate(row)]
    if not any(left):
        left = row
    goal = last_coin * sum(left)
    drawn = next(token for token, mass in enumerate(accumulate(left)) if mass > goal)
    committed[path[-1]] = drawn
    return committed, path


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 12),
    st.integers(1, 5),
    st.sampled_from([(1.0, 1.0), (0.25, 1.0), (0.0, 1.0), (1.0, 0.5)]),
    st.integers(2, 6),
)
def test_every_request_is_the_walk_of_the_kernel(
    seed: int, nodes: int, batch: int, thresholds: tuple[float, float], vocabulary: int
) -> None:
    """Committed tokens, accepted nodes and their count; nothing else is written."""
    generator = torch.Generator().manual_seed(seed)
    parents = [
        [-1, *(int(torch.randint(0, i, (1,), generator=generator)) for i in range(1, nodes))]
        for _ in range(batch)
    ]
    trees = trees_of(parents, torch.randint(0, vocabulary, (batch, nodes), generator=generator))
    probs = dyadic(batch * nodes, vocabulary, generator, zeros=0.4).view(batch, nodes, -1)
    coins = dyadic_coins(batch, nodes, generator=generator)
    last_coins = dyadic_coins(batch, generator=generator)
    deepest = max(level(tree, node) for tree in parents for node in range(nodes)) + 1
    for depth in {deepest, max(1, deepest - 1)}:
        got = verify(trees, probs, coins, last_coins, depth, *thresholds)
        for b in range(batch):
            committed, path = walk(
                trees, b, probs, coins[b].tolist(), float(last_coins[b]), depth, *thresholds
            )
            expected = [committed.get(node, UNWRITTEN) for node in range(nodes)]
            assert got.predicts[b].tolist() == expected
            assert got.accepted[b] == len(path) - 1
            flat = [b * nodes + node for node in path]
            assert got.accept_index[b].tolist() == flat + [-1] * (depth - len(path))


def level(parents: list[int], node: int) -> int:
    return 0 if node == 0 else 1 + level(parents, parents[node])


def chi_square_p(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """How likely counts at least this far from `probs` are; impossible tokens must be absent."""
    possible = probs > 0
    assert not counts[~possible].any()
    expected = probs[possible].double() * counts.sum()
    assert expected.min() >= 5, "too few trials for the chi-square approximation"
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = torch.tensor((int(possible.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


TREE = [-1, 0, 0, 0, 1, 1, 2]  # three children of the root, two below the first, one below the next
TOKENS = 9


def drafts_of(kind: str, generator: torch.Generator) -> torch.Tensor:
    """[TRIALS, nodes] tokens; siblings differ, as those of a draft tree do."""
    rows = TRIALS if kind == "random" else 1
    shuffles = [torch.rand(rows, TOKENS, generator=generator).argsort(-1) for _ in range(3)]
    root = torch.zeros(rows, 1, dtype=torch.int64)
    drafts = torch.cat([root, shuffles[0][:, :3], shuffles[1][:, :2], shuffles[2][:, :1]], 1)
    return drafts.expand(TRIALS, -1)


def sample(kind: str, seed: int, acc: float = 1.0) -> tuple[torch.Tensor, Verified]:
    """The policy [token, next token] and what was committed in TRIALS verifications of it."""
    generator = torch.Generator().manual_seed(seed)
    drafts = drafts_of(kind, generator)
    policy = dyadic(TOKENS, TOKENS, generator, zeros=0.25, skew=1)
    got = verify(
        trees_of([TREE], drafts),
        policy[drafts],  # a node's distribution is a function of its token
        torch.rand(TRIALS, len(TREE), generator=generator),
        torch.rand(TRIALS, generator=generator),
        depth=3,
        acc=acc,
    )
    return policy, got


@pytest.mark.parametrize("kind", ["random", "the same"])
def test_committed_tokens_follow_the_target_whatever_was_drafted(kind: str) -> None:
    """Exact sampling: the first token, and the second one given the first, are the target's."""
    policy, got = sample(kind, seed=20)
    first = got.predicts[:, 0].long()
    assert chi_square_p(torch.bincount(first, minlength=TOKENS), policy[0]) > ALPHA

    accepted = got.accepted >= 1
    assert 0.1 < accepted.double().mean() < 0.9, "acceptance and rejection were both drawn"
    child = got.accept_index[:, 1].long() % len(TREE)
    second = got.predicts.gather(1, child[:, None]).flatten().long()
    for token in first[accepted].unique():
        drawn = second[accepted & (first == token)]
        p = chi_square_p(torch.bincount(drawn, minlength=TOKENS), policy[token])
        assert p > ALPHA, int(token)


def test_a_bias_is_seen() -> None:
    """Accepting a tenth more than the rule allows."""
    policy, got = sample("the same", seed=20, acc=0.9)
    first = torch.bincount(got.predicts[:, 0].long(), minlength=TOKENS)
    assert chi_square_p(first, policy[0]) < ALPHA


HIGHEST_COIN = 1 - 2**-24


@pytest.mark.parametrize("coin", [0.0, 0.5, HIGHEST_COIN])
@pytest.mark.parametrize("last_coin", [0.0, HIGHEST_COIN])
def test_an_impossible_token_is_never_committed(coin: float, last_coin: float) -> None:
    """Also at the ends of the coins' range and where float32 sums do not reach one."""
    generator = torch.Generator().manual_seed(3)
    batch, vocabulary = 4000, 7
    weights = torch.rand(batch * 3, vocabulary, generator=generator) ** 4
    weights[torch.rand(weights.shape, generator=generator) < 0.6] = 0
    weights[:, 0] += weights.sum(-1) == 0
    probs = (weights / weights.sum(-1, keepdim=True)).view(batch, 3, vocabulary)
    drafts = torch.rand(batch, vocabulary, generator=generator).argsort(-1)[:, :3]
    trees = trees_of([[-1, 0, 0]], drafts)
    got = verify(
        trees, probs, torch.full((batch, 3), coin), torch.full((batch,), last_coin), depth=2
    )
    nodes, tokens = (got.predicts != UNWRITTEN).nonzero(as_tuple=True), got.predicts.long()
    chosen = probs[nodes[0], nodes[1], tokens[nodes]]
    assert (chosen > 0).all()


def test_all_mass_was_drafted_and_rounded_away() -> None:
    """Drafted masses that sum to a float32 just under one, and a coin not under that sum."""
    masses = torch.tensor([0.1, 0.2, 0.3, 0.4]).roll(1)
    masses = torch.cat([torch.zeros(3), masses * (1 - 2**-22) / masses.sum()])
    assert math.fsum(masses.tolist()) < HIGHEST_COIN
    trees = trees_of([[-1, 0, 0, 0, 0]], torch.tensor([[0, 3, 4, 5, 6]]))
    probs = masses.expand(1, 5, 7)
    got = verify(trees, probs, torch.full((1, 5), HIGHEST_COIN), torch.tensor([0.5]), depth=2)
    assert got.accepted == 0
    assert masses[got.predicts[0, 0]] > 0
