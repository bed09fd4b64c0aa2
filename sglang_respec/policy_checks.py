"""What keeps the policy of the settings from running under the options of a start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sglang_respec.config import RespecConfig
from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner import Profile
from sglang_respec.policies import (
    ALWAYS,
    AUTO,
    DEFAULT,
    SGLANG_ADAPTIVE,
    PolicyChoice,
    check_within,
    parse_configs,
)

Options = Mapping[str, Any]

_SHAPE = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
# Under these the ranks or streams of a server would have to agree on every switch.
_ONE_SHAPE_ONLY = {
    "pp_size": "--pp-size above 1",
    "enable_dp_attention": "--enable-dp-attention",
    "enable_two_batch_overlap": "--enable-two-batch-overlap",
    "enable_pdmux": "--enable-pdmux",
}


def policy_of(text: str, options: Options) -> PolicyChoice:
    """The policy of a server with these options, with `default` settled.

    It is `auto` on a CPU, where that has been measured, and `always` elsewhere and wherever a
    server must keep one shape.
    """
    choice = PolicyChoice.parse(text)
    if choice.name != DEFAULT:
        return choice
    may_switch = options.get("device") == "cpu" and not any(_one_shape_flags(options))
    return PolicyChoice(AUTO if may_switch else ALWAYS)


def never_drafts(config: RespecConfig, options: Options) -> bool:
    """Whether a speculative server with these options decodes plainly from start to end."""
    choice = policy_of(config.policy, options)
    own = _own_shape(options)
    return own is not None and choice.may_run((own,)) == (PLAIN,)


def refuse_policy(options: Options, config: RespecConfig) -> None:
    """Raise :class:`RespecError` if this policy cannot choose on a server with these options.

    options: SGLang's server arguments by field name; a missing one counts as its default.
    """
    if not options.get("speculative_algorithm"):
        return  # nothing is speculated, so there is nothing to choose
    choice = policy_of(config.policy, options)
    _refuse_two_choosers(choice, bool(options.get("speculative_adaptive")))
    if config.profile:
        Profile.load(config.profile)
    own = _own_shape(options)
    if own is None or choice.name == SGLANG_ADAPTIVE:
        return
    ready = choice.ready(own, parse_configs(config.configs))
    check_within(own, ready)
    if choice.may_run(ready) != (own,):
        _refuse_switching(options, choice.name)


def _refuse_two_choosers(choice: PolicyChoice, adaptive: bool) -> None:
    if adaptive and choice.name != SGLANG_ADAPTIVE:
        raise RespecError(
            f"--speculative-adaptive lets SGLang choose the steps, and the policy here is "
            f"{choice.name}; remove the flag, or set --respec-policy {SGLANG_ADAPTIVE}."
        )
    if choice.name == SGLANG_ADAPTIVE and not adaptive:
        raise RespecError(
            f"The policy {SGLANG_ADAPTIVE} is SGLang's own mode; add --speculative-adaptive."
        )


def _own_shape(options: Options) -> SpeculationConfig | None:
    """None where SGLang has still to choose it."""
    numbers = [options.get(name) for name in _SHAPE]
    if not all(isinstance(number, int) for number in numbers):
        return None
    steps, topk, nodes = numbers
    return SpeculationConfig(steps, topk, nodes)  # type: ignore[arg-type]


def _refuse_switching(options: Options, policy: str) -> None:
    for flag in _one_shape_flags(options):
        raise RespecError(
            f"The policy {policy} may leave the server's own shape of speculation, which "
            f"{flag} does not allow; remove the flag, or set --respec-policy {ALWAYS}."
        )


def _one_shape_flags(options: Options) -> Iterator[str]:
    """What was given that keeps a server to its own shape."""
    for name, flag in _ONE_SHAPE_ONLY.items():
        value = options.get(name) or 0
        if value > (name == "pp_size"):
            yield flag
