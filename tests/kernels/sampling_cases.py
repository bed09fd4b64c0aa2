"""Rows and requests for the sampling kernels' tests, and the comparison with the oracle."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sampling_oracle as oracle
import torch
from sampling_oracle import ALL, GREEDY, Parameters

Kernel = Callable[..., Any]
POISON_TOKEN = -77
TEMPERATURES = (0.6, 1.0, 1.3)
TOP_KS = (ALL, 20, GREEDY, 3)  # of one request after the other
TOP_PS = (0.3, 0.95, 1.0)
MIN_PS = (0.0, 0.05, 0.5)


@dataclass(frozen=True)
class Rows:
    """Logits with the parameters of their requests; rows are shared out evenly or by `owners`."""

    logits: torch.Tensor  # [R, V]
    positions: list[int]
    parameters: list[Parameters]  # one per request
    owners: list[int] | None = None
    filtered: bool = field(default=True)

    def owner(self, row: int) -> int:
        if self.owners is not None:
            return self.owners[row]
        return row // (len(self.positions) // len(self.parameters))

    def expected(self, row: int) -> tuple[int, float]:
        logits = self.logits[row].float().tolist()
        return oracle.token(logits, self.positions[row], self.parameters[self.owner(row)])


def parameter_tensors(parameters: Sequence[Parameters], device: str = "cpu") -> dict[str, Any]:
    columns = {
        "temperatures": ("temperature", torch.float32),
        "top_ks": ("top_k", torch.int32),
        "top_ps": ("top_p", torch.float32),
        "min_ps": ("min_p", torch.float32),
        "seeds": ("seed", torch.int64),
    }
    return {
        name: torch.tensor([getattr(p, column) for p in parameters], dtype=dtype, device=device)
        for name, (column, dtype) in columns.items()
    }


def row_arguments(case: Rows, device: str = "cpu") -> dict[str, Any]:
    owners = case.owners
    return {
        "logits": case.logits.to(device),
        "positions": torch.tensor(case.positions, dtype=torch.int64, device=device),
        "requests": None if owners is None else torch.tensor(owners, device=device),
        **parameter_tensors(case.parameters, device),
        "filtered": case.filtered,
    }


def some_parameters(draw: random.Random, request: int, filtered: bool = True) -> Parameters:
    """Any mixture; every fourth request is greedy, the first is not."""
    top_k = TOP_KS[request % len(TOP_KS)]
    return Parameters(
        temperature=draw.choice(TEMPERATURES),
        top_k=top_k if filtered or top_k == GREEDY else ALL,
        top_p=draw.choice(TOP_PS) if filtered else 1.0,
        min_p=draw.choice(MIN_PS) if filtered else 0.0,
        seed=draw.getrandbits(63),
    )


def random_rows(
    seed: int,
    requests: int,
    per_request: int,
    vocabulary: int,
    *,
    filtered: bool = True,
    dtype: torch.dtype = torch.float32,
    forbidden: float = 0.2,
) -> Rows:
    """Peaked and flat rows, some tokens forbidden, some logits tied."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = requests * per_request
    spread = torch.tensor([draw.choice((0.3, 2.0, 6.0)) for _ in range(rows)])
    logits = torch.randn(rows, vocabulary, generator=generator) * spread[:, None]
    logits = torch.where(spread[:, None] < 1, logits.round(decimals=1), logits)  # ties
    banned = torch.rand(rows, vocabulary, generator=generator) < forbidden
    banned[torch.arange(rows), logits.argmin(1)] = False
    return Rows(
        logits.masked_fill(banned, -math.inf).to(dtype),
        [draw.randrange(1 << 20) for _ in range(rows)],
        [some_parameters(draw, request, filtered) for request in range(requests)],
        filtered=filtered,
    )


def logprob_bound(logits: torch.Tensor, temperature: float, logprob: float) -> float:
    """How far a float32 logprob may be from the oracle's.

    It is (t_x - max t) - log(sum of exp(t - max t)). Rounding t to float32 is in the oracle too;
    a kernel may scale the rounded difference instead, 2^-23 of max |t|. The difference itself is
    at most |logprob| and rounds by 2^-22 of it; a sum of V terms in any order by V * 2^-24 in
    theory, by 2^-20 with partial sums of at most 2^10 addends each; exp and log by 2^-21.
    """
    finite = logits[logits.isfinite()].float().abs().max().item() / temperature
    return finite * 2**-23 + abs(logprob) * 2**-22 + 2**-20 + 2**-21


def check_rows(
    sample_rows: Kernel, case: Rows, device: str = "cpu", live: list[int] | None = None
) -> None:
    """Run one implementation over poisoned memory and compare every row with the oracle."""
    arguments = row_arguments(case, device)
    visited = list(range(case.logits.shape[0])) if live is None else live
    tokens = torch.full((len(visited),), POISON_TOKEN, dtype=torch.int64, device=device)
    logprobs = torch.full((len(visited),), 1e9, dtype=torch.float32, device=device)
    if live is not None:
        arguments["live"] = torch.tensor(live, dtype=torch.int64, device=device)
    before = arguments["logits"].clone()
    outputs = sample_rows(**arguments, tokens=tokens, logprobs=logprobs)
    assert outputs[0] is tokens
    assert outputs[1] is logprobs
    torch.testing.assert_close(arguments["logits"], before, rtol=0, atol=0, equal_nan=True)
    for slot, row in enumerate(visited):
        token, logprob = (-1, math.nan) if row < 0 else case.expected(row)
        got = logprobs[slot].item()
        assert tokens[slot].item() == token, f"token of row {row}: {case}"
        if token < 0:
            assert math.isnan(got), f"logprob of row {row}"
            continue
        temperature = case.parameters[case.owner(row)].temperature
        bound = logprob_bound(case.logits[row], temperature, logprob)
        assert abs(got - logprob) <= bound, f"logprob of row {row}: {got}, not {logprob}"
    bare, none = sample_rows(**arguments, scored=False)
    assert bare.tolist() == tokens.tolist()
    assert none.shape == (0,)
