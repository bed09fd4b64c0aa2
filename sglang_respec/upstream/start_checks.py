"""Checks on parsed server arguments: what would fail late or silently fails here."""

import os
import sys
from typing import Any

from sglang_respec.drafter.fit import check_drafter_fits
from sglang_respec.errors import RespecError
from sglang_respec.refusals import options_of, refuse_unsupported
from sglang_respec.upstream.activation import require_hooks


def refuse_bad_start(server_args: Any, *_: Any, **__: Any) -> None:
    """Stops the process with one sentence if these arguments cannot serve.

    Runs after SGLang has parsed its command line, whichever command started it.
    """
    try:
        require_hooks()  # all plugins have run by now
        refuse_unsupported(options_of(server_args), os.environ)
        drafter = server_args.speculative_draft_model_path
        if drafter and server_args.speculative_algorithm == "EAGLE3":
            check_drafter_fits(server_args.model_path, drafter)
    except RespecError as error:
        sys.exit(f"respec: {error}")
