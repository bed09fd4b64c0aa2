"""Keys of the prefix cache, for a server whose drafter never runs.

The drafter's entry at a position holds the token after it, so that SGLang keys a speculative
server's cache by pairs of tokens, and of a prompt it knows it computes two tokens instead of one.
Where nobody reads the drafter's entries, single tokens will do, as in plain SGLang.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_respec.config import load_config
from sglang_respec.policy_checks import never_drafts
from sglang_respec.refusals import options_of


def key_prefixes(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around `build_kv_cache`, which asks its `spec_algorithm` for nothing but the kind of keys."""
    if never_drafts(load_config(), options_of(kwargs["server_args"])):
        kwargs["spec_algorithm"] = SpeculativeAlgorithm.NONE
    return original(*args, **kwargs)
