"""Enters the hooks into SGLang and proves that each of them landed.

SGLang logs a plugin's failure and serves on without it. A rollout server that silently
lost its sampling or its policy is worse than none, so here a missing hook is an error.
"""

import contextlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_respec.errors import RespecError
from sglang_respec.upstream.hook_table import Hook
from sglang_respec.upstream.hooks import hooks_for


@dataclass(frozen=True)
class HookStatus:
    """Whether one hook is in force in this process; `reason` says why not."""

    name: str
    target: str
    landed: bool
    reason: str = ""


@dataclass
class _Installed:
    hook: Hook
    replacement: Any
    too_late: bool  # SGLang patches a target once, and another plugin had it patched already
    standing: Any = None  # what SGLang finds at the target since


_installed: dict[str, _Installed] = {}


def install_hooks(*, enabled: bool, portable: bool) -> list[HookStatus]:
    """Registers and applies the hooks of this process; raises `RespecError` if one is lost."""
    for hook in hooks_for(enabled=enabled, portable=portable):
        if hook.target in _installed:
            continue
        replacement = hook.make()
        too_late = hook.target in HookRegistry._patched
        if hook.kind == "assign":
            _assign(hook.target, replacement)
        else:
            _must_exist(hook.target)
            HookRegistry.register(hook.target, replacement, HookType(hook.kind))
        _installed[hook.target] = _Installed(hook, replacement, too_late)
    HookRegistry.apply_hooks()
    for each in _installed.values():
        with contextlib.suppress(ImportError, AttributeError):  # reported below, by name
            each.standing = each.standing or pkgutil.resolve_name(each.hook.target)
    return require_hooks()


def require_hooks() -> list[HookStatus]:
    """The state of every hook; raises `RespecError` if one is lost, also to a later plugin."""
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
    return [
        HookStatus(each.hook.name, each.hook.target, not (reason := _why_lost(each)), reason)
        for each in _installed.values()
    ]


def _why_lost(installed: _Installed) -> str:
    """Empty for a hook that is in force."""
    hook = installed.hook
    try:
        found = pkgutil.resolve_name(hook.target)
    except (ImportError, AttributeError) as error:
        return f"SGLang has no such name: {error}"
    if installed.too_late:
        return "another plugin patched it first"
    if hook.kind == "assign" or isinstance(installed.replacement, type):
        in_force = found is installed.replacement
    elif hook.target not in HookRegistry._patched:
        return "SGLang did not apply it; see its log"
    else:
        # Who wraps ours, as `functools.wraps` does, leaves it in force.
        in_force = any(each == installed.standing for each in _unwrapped(found))
    # SGLang takes one of two replacements and only logs that; the order of plugins decides.
    rivals = [
        other
        for kind, other, _ in HookRegistry._hooks.get(hook.target, ())
        if hook.kind == "replace"
        and kind is HookType.REPLACE
        and other is not installed.replacement
    ]
    return "" if in_force and not rivals else "another plugin replaces it"


def _unwrapped(found: Any) -> Iterator[Any]:
    """What stands at a target, then what it wraps, and so on."""
    while found is not None:
        yield found
        found = getattr(found, "__wrapped__", None)
