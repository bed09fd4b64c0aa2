"""Launch options under which the extension would silently not work. Each is refused by name.

SGLang only logs a plugin that fails, and some of its modes start processes that load no plugins
at all. A server that looks healthy and runs without us is worse than one that does not start.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from typing import Any

from sglang_respec.errors import RespecError

SGLANG_VERSION = "0.5.23"

PLUGIN_NAME = "respec"
PLATFORM_NAME = "respec_portable"

Options = Mapping[str, Any]
Environ = Mapping[str, str]


def installed_sglang_version() -> str | None:
    """The version of the installed SGLang, without importing it; None when there is none."""
    try:
        return importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return None


def options_of(server_args: Any) -> dict[str, Any]:
    """The fields of SGLang's ``ServerArgs`` by name.

    In 0.5.23 it is a ``msgspec`` struct: ``vars`` of it holds its bookkeeping and no field.
    """
    return {name: getattr(server_args, name) for name in server_args.__struct_fields__}


def refuse_unsupported(
    options: Options,
    environ: Environ,
    *,
    sglang_version: Callable[[], str | None] = installed_sglang_version,
) -> None:
    """Raise :class:`RespecError` for the first option under which our hooks would be lost.

    ``options`` are SGLang's server arguments by field name (``tokenizer_worker_num``); a missing
    field counts as its default. :func:`options_of` makes the mapping from a ``ServerArgs``.
    """
    _refuse_version(sglang_version())
    _refuse_plugin_selection(options, environ)
    _refuse_other_frontends(options, environ)
    _refuse_other_workers(options)
    _refuse_other_sampling(options)


def _refuse_version(installed: str | None) -> None:
    if installed is None:
        raise RespecError(
            "SGLang is not installed in this environment; "
            f"run: pip install sglang=={SGLANG_VERSION}"
        )
    if installed != SGLANG_VERSION:
        raise RespecError(
            f"sglang-respec needs SGLang {SGLANG_VERSION} exactly, and {installed} is installed; "
            f"run: pip install sglang=={SGLANG_VERSION}"
        )


def _refuse_plugin_selection(options: Options, environ: Environ) -> None:
    allowed = {name.strip() for name in environ.get("SGLANG_PLUGINS", "").split(",")} - {""}
    if allowed and PLUGIN_NAME not in allowed:
        raise RespecError(
            f"SGLANG_PLUGINS={environ['SGLANG_PLUGINS']} leaves this extension out; "
            f"add {PLUGIN_NAME} and {PLATFORM_NAME} to it, or unset it."
        )
    if allowed and PLATFORM_NAME not in allowed and options.get("device") == "cpu":
        raise RespecError(
            f"SGLANG_PLUGINS={environ['SGLANG_PLUGINS']} leaves the CPU platform out; "
            f"add {PLATFORM_NAME} to it, or unset it."
        )
    # SGLang drops all plugins of a distribution whose platform is not the selected one.
    platform = environ.get("SGLANG_PLATFORM", "")
    if platform not in ("", PLATFORM_NAME):
        raise RespecError(
            f"SGLANG_PLATFORM={platform} makes SGLang skip this extension's plugins; "
            "unset SGLANG_PLATFORM."
        )


def _refuse_other_frontends(options: Options, environ: Environ) -> None:
    if environ.get("SGLANG_RUST_SERVER", "").strip().lower() in ("1", "true", "yes", "y"):
        raise RespecError(
            "SGLANG_RUST_SERVER replaces the Python HTTP server that this extension extends; "
            "unset SGLANG_RUST_SERVER."
        )
    if options.get("smg_grpc_mode") or options.get("grpc_mode"):
        raise RespecError(
            "The gRPC server (--smg-grpc-mode, --grpc-mode) replaces the HTTP server that this "
            "extension extends; remove the flag."
        )
    if (options.get("tokenizer_worker_num") or 1) > 1:
        raise RespecError(
            "Extra tokenizer workers load no plugins, so --tokenizer-worker-num must stay 1; "
            "remove the flag."
        )
    if options.get("use_ray"):
        raise RespecError(
            "Ray's scheduler actors load no plugins, so this extension cannot run in them; "
            "remove --use-ray."
        )
    if options.get("encoder_only"):
        raise RespecError(
            "An --encoder-only server decodes nothing, so there is nothing to speculate; "
            "start it with `sglang serve`."
        )


def _refuse_other_workers(options: Options) -> None:
    if options.get("enable_multi_layer_eagle"):
        raise RespecError(
            "--enable-multi-layer-eagle selects a worker that this extension does not extend; "
            "remove the flag."
        )


def _refuse_other_sampling(options: Options) -> None:
    if options.get("disaggregation_mode") not in (None, "null"):
        raise RespecError(
            "With --disaggregation-mode a request is decoded by a server that did not prefill it, "
            "and its seed and penalties do not travel along; remove the flag, or set "
            "SGLANG_RESPEC=0."
        )
    if not options.get("speculative_algorithm"):
        return
    if options.get("speculative_use_rejection_sampling"):
        raise RespecError(
            "--speculative-use-rejection-sampling draws other tokens than plain decoding; this "
            "server verifies by coupled sampling, which needs no flag: remove it."
        )
    if any(options.get(f"speculative_accept_threshold_{each}", 1) != 1 for each in _THRESHOLDS):
        raise RespecError(
            "--speculative-accept-threshold-single and -acc below 1 change what the policy would "
            "have sampled; this server never does: remove them."
        )
    if options.get("rl_on_policy_target"):
        raise RespecError(
            "--rl-on-policy-target rounds logits in a way that a draft tree is not verified with; "
            "remove it, or serve without a drafter."
        )


_THRESHOLDS = ("single", "acc")
