"""The kinds of sampling that speculation must not change, for tests and checks."""

import itertools
from collections.abc import Sequence
from typing import Any

TEMPERATURES = (0.0, 0.6, 1.0, 1.5)
ANSWER_SCHEMA = (
    '{"type": "object", "properties": {"steps": {"type": "array", "items": '
    '{"type": "integer"}, "minItems": 8}, "answer": {"type": "integer"}}, '
    '"required": ["steps", "answer"]}'
)
FILTERS: dict[str, dict[str, Any]] = {
    "unfiltered": {},
    "top-p": {"top_p": 0.95},
    "top-k": {"top_k": 20},
    "top-p and top-k": {"top_p": 0.95, "top_k": 20},
    "min-p": {"min_p": 0.05},
    "frequency penalty": {"frequency_penalty": 0.4},
    "presence penalty": {"presence_penalty": 0.6},
    "repetition penalty": {"repetition_penalty": 1.2},
    "logit bias": {"logit_bias": {"20": 2.0, "33": -3.0}},
    "JSON schema": {"json_schema": ANSWER_SCHEMA},
    "n = 4": {"n": 4},
}
KINDS: dict[str, dict[str, Any]] = {
    f"T {temperature}, {name}": {"temperature": temperature, **filters}
    for name, filters in FILTERS.items()
    for temperature in TEMPERATURES
    # A filter leaves nothing to choose at temperature 0, and SGLang takes it as top-k 1.
    if temperature > 0 or not {"top_p", "top_k", "min_p"} & filters.keys()
}
SAMPLES = {name: parameters.get("n", 1) for name, parameters in KINDS.items()}


def mixed_batch(
    prompts: Sequence[Sequence[int]], per_kind: int, tokens: int
) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Prompts and parameters for ``per_kind`` rollouts of each kind, each request with its seed.

    per_kind: a multiple of the most samples a kind takes of one request.
    """
    pool = itertools.cycle(prompts)
    asked, sampling = [], []
    for number, parameters in enumerate(KINDS.values()):
        for sample in range(per_kind // parameters.get("n", 1)):
            asked.append(list(next(pool)))
            sampling.append(
                {
                    **parameters,
                    "sampling_seed": number * 1_000_003 + sample,
                    "max_new_tokens": tokens,
                    "ignore_eos": "json_schema" not in parameters,
                }
            )
    return asked, sampling
