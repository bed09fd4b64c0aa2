"""Freed memory stays with the process: counted in page faults, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from sglang_respec.config import CONFIG_ENV, RespecConfig

BLOCK_BYTES, TIMES = 48 << 20, 20
PAGES = BLOCK_BYTES // 4096
COUNT = f"""
import resource, sys
if sys.argv[1] == "kept":
    import sglang.srt.utils  # first: SGLang's own imports go in a circle
    from sglang_respec.upstream.portable.platform import PortablePlatform
    PortablePlatform().post_load_model(None)
bytearray({BLOCK_BYTES})
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({TIMES}):
    bytearray(b"1" * {BLOCK_BYTES})
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, folder: Path) -> int:
    settings = folder / "respec.toml"
    settings.write_text(RespecConfig(portable_threads=1).to_toml(), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-c", COUNT, how],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, CONFIG_ENV: str(settings)},
    )
    return int(run.stdout)


def test_blocks_that_are_freed_are_not_mapped_anew(tmp_path: Path):
    assert faults("as glibc has it", tmp_path) > TIMES * PAGES / 10, "else there is nothing to gain"
    assert faults("kept", tmp_path) < 4 * PAGES
