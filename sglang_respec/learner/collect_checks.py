"""Settings and options under which a server could not collect rollouts. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from sglang_respec.errors import RespecError
from sglang_respec.learner.chunk_format import MAX_LISTED

# Under these a step's rows are spread over processes or streams in ways that nobody has tried.
_NOT_WITH = {
    "pp_size": "--pp-size above 1",
    "enable_dp_attention": "--enable-dp-attention",
    "enable_two_batch_overlap": "--enable-two-batch-overlap",
    "enable_pdmux": "--enable-pdmux",
}


def check_samples(destination: str, fraction: float, top_k: int) -> None:
    """Raise `RespecError` for values of the settings samples_* that cannot be."""
    if not 0 < fraction <= 1:
        raise RespecError(f"samples_fraction must be more than 0 and at most 1, got {fraction!r}.")
    if top_k > MAX_LISTED:
        raise RespecError(f"samples_top_k must be at most {MAX_LISTED}, got {top_k!r}.")
    if "://" not in destination:
        return
    try:
        parts = urlsplit(destination)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        named = False
    if not named or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise RespecError(
            f"samples_to must be http://HOST:PORT of a learner or a folder, got {destination!r}."
        )


def refuse_collecting(options: Mapping[str, Any], destination: str) -> None:
    """Raise `RespecError` if a server with these options cannot collect rollouts.

    options: SGLang's server arguments by field name; a missing one counts as its default.
    """
    if not destination or "config" in options:  # SGLang's own file may name the algorithm
        return
    if str(options.get("speculative_algorithm") or "").upper() != "EAGLE3":
        raise RespecError(
            "Rollouts are collected to teach an EAGLE-3 drafter, and this server has none; add "
            "--drafter-path, or remove --respec-samples-to."
        )
    for name, flag in _NOT_WITH.items():
        value = options.get(name) or 0
        if value > (name == "pp_size"):
            raise RespecError(
                f"Rollouts cannot be collected with {flag}; remove it or --respec-samples-to."
            )
