"""Where profiles lie that servers measured for themselves, and when one is used again."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sglang_respec.core import PLAIN, SpeculationConfig
from sglang_respec.errors import RespecError
from sglang_respec.planner.profile import Profile, ProfileKey

MAX_NAME = 40


def profile_folder(setting: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that the setting `profile_dir` names, or the user's cache."""
    if setting:
        return Path(setting).expanduser()
    cache = environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if cache else Path.home() / ".cache") / "sglang_respec" / "profiles"


def profile_path(folder: Path, key: ProfileKey, candidates: Sequence[SpeculationConfig]) -> Path:
    """One file per key and set of candidates; the name begins with the target's."""
    identity = json.dumps([asdict(key), sorted(map(str, candidates))], sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9.]+", "-", key.target)[:MAX_NAME].strip("-.")
    return folder / f"{name or 'target'}-{digest}.json"


def find_profile(
    path: Path, key: ProfileKey, candidates: Sequence[SpeculationConfig]
) -> tuple[Profile | None, str]:
    """(profile, ""), or (None, why the file is no use); (None, "") where there is none."""
    if not path.exists():
        return None, ""
    try:
        profile = Profile.load(path)
        profile.require(key, path)
    except RespecError as error:
        return None, str(error)
    lacking = [each for each in (PLAIN, *candidates) if not profile.composes(each)]
    if lacking:
        return None, f"The profile {path} has no step times for {lacking[0]}."
    return profile, ""


def keep_profile(profile: Profile, path: Path) -> str:
    """Save; returns why it could not be saved, or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"The folder {path.parent} cannot be made ({error.strerror}); set profile_dir."
    try:
        profile.save(path)
    except RespecError as error:
        return str(error)
    return ""
