"""Chunks of finished rollouts, written by a server and read by the learner.

The format stands in :mod:`.chunk_format`. Reading trusts nothing: names, types and shapes by the
header, then counts and values; whatever is wrong is one :class:`.BadChunk`.
"""

import json
import os
from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from sglang_respec.learner.chunk_format import (
    FORMAT_VERSION,
    MAX_ID_CHARS,
    MAX_LISTED,
    MAX_ROLLOUTS,
    BadChunk,
    check_header,
)
from sglang_respec.learner.samples import RolloutSample

# The listed probabilities and the tail are float32 roundings of numbers that add up to 1: each
# logprob carries a relative error near 2^-21 (its exponent), a sum of up to 4096 of them no more
# than 4096 * 2^-24 besides.
MASS_TOLERANCE = 1e-3


def encode_chunk(samples: Sequence[RolloutSample]) -> bytes:
    """The chunk's bytes. Raises `BadChunk` if a sample's parts do not fit each other."""
    if not 1 <= len(samples) <= MAX_ROLLOUTS:
        raise BadChunk(f"A chunk holds 1 to {MAX_ROLLOUTS} rollouts, got {len(samples)}.")
    if len({(s.aux.dtype, s.aux.shape[1:], s.top_ids.shape[1:]) for s in samples}) != 1:
        raise BadChunk("Rollouts of one chunk must agree in type and width of aux and top_ids.")
    ids = json.dumps([sample.request_id for sample in samples]).encode()
    tensors = {
        "format": torch.tensor([FORMAT_VERSION], dtype=torch.int32),
        "request_ids": torch.frombuffer(bytearray(ids), dtype=torch.uint8),
        "token_counts": _column([len(s.tokens) for s in samples], torch.int32),
        "prompt_counts": _column([s.prompt_tokens for s in samples], torch.int32),
        "first_aux": _column([s.first_aux for s in samples], torch.int32),
        "seeds": _column([s.seed for s in samples], torch.int64),
        "drafter_versions": _column([s.drafter_version for s in samples], torch.int64),
        "policy_versions": _column([s.policy_version for s in samples], torch.int64),
        "temperatures": _column([s.temperature for s in samples], torch.float32),
        "tokens": _joined([s.tokens for s in samples], torch.int32),
        "aux": _joined([s.aux for s in samples], samples[0].aux.dtype),
        "top_ids": _joined([s.top_ids for s in samples], torch.int32),
        "top_logprobs": _joined([s.top_logprobs for s in samples], torch.float32),
        "tail_mass": _joined([s.tail_mass for s in samples], torch.float32),
    }
    _check_counts(tensors)
    _check_ids([sample.request_id for sample in samples], len(samples))
    encoded: bytes = save(tensors)
    return encoded


def read_chunk(path: str | os.PathLike[str]) -> list[RolloutSample]:
    """The rollouts of a file, in memory of their own. Raises `BadChunk`, or `OSError`."""
    check_header(path)
    tensors = load_file(path)
    _check_counts(tensors)
    _check_values(tensors)
    ids = _read_ids(tensors["request_ids"], len(tensors["token_counts"]))
    return _split(tensors, ids)


def _split(tensors: dict[str, Tensor], ids: list[str]) -> list[RolloutSample]:
    counts, prompts = tensors["token_counts"], tensors["prompt_counts"]
    generated = (counts - prompts).tolist()
    aux_rows = (counts - 1 - tensors["first_aux"]).tolist()
    # Clones: a rollout that stays in a buffer must not hold on to its whole chunk.
    parts = {
        "tokens": tensors["tokens"].split(counts.tolist()),
        "aux": tensors["aux"].split(aux_rows),
        **{n: tensors[n].split(generated) for n in ("top_ids", "top_logprobs", "tail_mass")},
    }
    return [
        RolloutSample(
            request_id=ids[i],
            prompt_tokens=int(prompts[i]),
            first_aux=int(tensors["first_aux"][i]),
            seed=int(tensors["seeds"][i]),
            temperature=float(tensors["temperatures"][i]),
            drafter_version=int(tensors["drafter_versions"][i]),
            policy_version=int(tensors["policy_versions"][i]),
            **{name: part[i].clone() for name, part in parts.items()},
        )
        for i in range(len(ids))
    ]


def _column(values: list[int] | list[float], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def _joined(parts: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.cat([part.detach().to("cpu", dtype) for part in parts]).contiguous()


def _check_counts(tensors: dict[str, Tensor]) -> None:
    """Counts are possible and add up to the rows of the token-wise tensors."""
    counts, prompts, first = (
        tensors[name].long() for name in ("token_counts", "prompt_counts", "first_aux")
    )
    possible = (first >= 0) & (first < prompts) & (prompts < counts)
    if not bool(possible.all()):
        row = int((~possible).nonzero()[0])
        raise BadChunk(
            f"Rollout {row} has {int(counts[row])} tokens, {int(prompts[row])} of the prompt and "
            f"hidden states from {int(first[row])} on; 0 <= first_aux < prompt < tokens must hold."
        )
    sums = {
        "tokens": int(counts.sum()),
        "aux": int((counts - 1 - first).sum()),
        "top_ids": int((counts - prompts).sum()),
        "top_logprobs": int((counts - prompts).sum()),
        "tail_mass": int((counts - prompts).sum()),
    }
    wrong = {n: (len(tensors[n]), rows) for n, rows in sums.items() if len(tensors[n]) != rows}
    if wrong:
        raise BadChunk(f"Rows (found, as the counts say) disagree: {wrong}.")
    if not 1 <= tensors["top_ids"].shape[1] <= MAX_LISTED:
        raise BadChunk(f"List 1 to {MAX_LISTED} tokens per row.")


def _check_values(tensors: dict[str, Tensor]) -> None:
    logprobs, tail = tensors["top_logprobs"], tensors["tail_mass"]
    temperatures = tensors["temperatures"]
    mass = logprobs.double().exp().sum(1) + tail
    ids = tensors["top_ids"].sort(1).values
    problems = {
        "tokens holds negative ids": (tensors["tokens"] < 0).any(),
        "top_ids holds negative or repeated ids": (ids < 0).any() | (ids.diff(dim=1) == 0).any(),
        "aux holds NaN or infinity": ~tensors["aux"].isfinite().all(),
        "top_logprobs holds NaN or positive numbers": ~(logprobs <= 1e-6).all(),
        "tail_mass is not within 0 and 1": ~((tail >= 0) & (tail <= 1)).all(),
        "listed mass and tail do not add up to 1": ~((mass - 1).abs() <= MASS_TOLERANCE).all(),
        "temperatures are not finite and 0 or more": ~(
            (temperatures >= 0) & temperatures.isfinite()
        ).all(),
        "a version is negative": (tensors["drafter_versions"] < 0).any()
        | (tensors["policy_versions"] < 0).any(),
    }
    found = [problem for problem, there in problems.items() if bool(there)]
    if found:
        raise BadChunk(f"The chunk cannot be used: {'; '.join(found)}.")


def _read_ids(encoded: Tensor, rollouts: int) -> list[str]:
    try:
        ids = json.loads(encoded.numpy().tobytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadChunk("request_ids is not JSON; write chunks with encode_chunk.") from error
    return _check_ids(ids, rollouts)


def _check_ids(ids: object, rollouts: int) -> list[str]:
    texts = isinstance(ids, list) and all(
        isinstance(each, str) and 1 <= len(each) <= MAX_ID_CHARS for each in ids
    )
    if not texts or len(ids) != rollouts or len(set(ids)) != rollouts:  # type: ignore[arg-type, call-overload]
        raise BadChunk(
            f"request_ids must be {rollouts} different texts of 1 to {MAX_ID_CHARS} characters."
        )
    return list(ids)  # type: ignore[call-overload]
