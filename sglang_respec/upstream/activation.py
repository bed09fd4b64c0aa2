"""Enters the hooks into SGLang and proves that each of them landed.

SGLang logs a plugin's failure and serves on without it. A rollout server that silently
lost its sampling or its policy is worse than none, so here a missing hook is an error.
"""

import pkgutil
from dataclasses import dataclass
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_respec.errors import RespecError
from sglang_respec.upstream.hooks import Hook, hooks_for


@dataclass(frozen=True)
class HookStatus:
    """Whether one hook is in force in this process; `reason` says why not."""

    name: str
    target: str
    landed: bool
    reason: str = ""


_installed: dict[str, tuple[Hook, Any]] = {}


def install_hooks(*, enabled: bool, portable: bool) -> list[HookStatus]:
    """Registers and applies the hooks of this process; raises `RespecError` if one is lost."""
    for hook in hooks_for(enabled=enabled, portable=portable):
        if hook.target in _installed:
            continue
        replacement = hook.make()
        if hook.kind == "assign":
            _assign(hook.target, replacement)
        else:
            _must_exist(hook.target)
            HookRegistry.register(hook.target, replacement, HookType(hook.kind))
        _installed[hook.target] = (hook, replacement)
    HookRegistry.apply_hooks()
    report = activation_report()
    lost = [status for status in report if not status.landed]
    if lost:
        raise RespecError(
            "These hooks did not land in SGLang: "
            + "; ".join(f"{status.name} on {status.target} ({status.reason})" for status in lost)
            + ". Run `respec doctor`, or set SGLANG_RESPEC=0 to serve with stock SGLang."
        )
    return report


def _must_exist(target: str) -> None:
    """`HookRegistry` rewrites every name in the process that holds the target's old object;
    for a target that is None, that would be every None there is."""
    try:
        missing = pkgutil.resolve_name(target) is None
    except (ImportError, AttributeError):
        return  # reported with the other hooks, by name
    if missing:
        raise RespecError(f"SGLang leaves {target} empty here; run `respec doctor`.")


def _assign(target: str, replacement: Any) -> None:
    module, _, name = target.rpartition(".")
    owner = pkgutil.resolve_name(module)
    if getattr(owner, name, None) is not None:
        raise RespecError(
            f"SGLang now brings its own {target}; this version of sglang-respec does not know it. "
            "Install the SGLang version that `respec doctor` names."
        )
    setattr(owner, name, replacement)


def activation_report() -> list[HookStatus]:
    """The state of every hook installed in this process."""
    return [_status(hook, replacement) for hook, replacement in _installed.values()]


def _status(hook: Hook, replacement: Any) -> HookStatus:
    try:
        found = pkgutil.resolve_name(hook.target)
    except (ImportError, AttributeError) as error:
        return HookStatus(hook.name, hook.target, False, f"SGLang has no such name: {error}")
    if hook.kind != "assign" and hook.target not in HookRegistry._patched:
        return HookStatus(hook.name, hook.target, False, "SGLang did not apply it; see its log")
    if hook.kind == "assign" or isinstance(replacement, type):
        landed = found is replacement
    else:
        # A function hook is in force if SGLang wrapped the target and no other plugin
        # registered a later replacement, which would win.
        replacements = [
            h for kind, h, _ in HookRegistry._hooks[hook.target] if kind.value == hook.kind
        ]
        landed = hasattr(found, "__wrapped__") and replacements[-1] is replacement
    reason = "" if landed else "another plugin replaced it"
    return HookStatus(hook.name, hook.target, landed, reason)
