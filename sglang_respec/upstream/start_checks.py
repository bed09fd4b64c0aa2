"""Checks on parsed server arguments: what would fail late or silently fails here."""

import os
import sys
from typing import Any

from sglang_respec.config import load_config
from sglang_respec.drafter.fit import check_drafter_fits
from sglang_respec.errors import RespecError
from sglang_respec.learner.collect_checks import refuse_collecting
from sglang_respec.plugin import needs_portable
from sglang_respec.policy_checks import refuse_policy
from sglang_respec.refusals import options_of, refuse_unsupported
from sglang_respec.upstream.activation import require_hooks


def refuse_bad_start(server_args: Any, *_: Any, **__: Any) -> None:
    """Stops the process with one sentence if these arguments cannot serve.

    Runs after SGLang has parsed its command line, whichever command started it.
    """
    try:
        require_hooks()  # all plugins have run by now
        refuse_unsupported(options_of(server_args), os.environ)
        refuse_policy(options_of(server_args), load_config())
        refuse_collecting(options_of(server_args), load_config().samples_to)
        _refuse_paged_trees(server_args)
        drafter = server_args.speculative_draft_model_path
        if drafter and server_args.speculative_algorithm == "EAGLE3":
            check_drafter_fits(server_args.model_path, drafter)
    except RespecError as error:
        sys.exit(f"respec: {error}")


def _refuse_paged_trees(server_args: Any) -> None:
    """SGLang refuses this as well, later and with a traceback that names only GPU backends."""
    topk, page_size = server_args.speculative_eagle_topk or 1, server_args.page_size or 1
    if topk > 1 and page_size > 1 and needs_portable():
        raise RespecError(
            f"Draft trees on a CPU need --page-size 1, and it is {page_size} with "
            f"--speculative-eagle-topk {topk}; remove one of the two flags."
        )
