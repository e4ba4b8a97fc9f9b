"""A split that dies half-way, for notebook 01: in a process of its own, killed when its journal has
begun."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from ..errors import PortError
from ..weights.sharding.manifest import WORK, rank_folder

_SPLIT = (
    "import sys; from dsv3_port.weights.sharding import shard_checkpoint; "
    "shard_checkpoint(sys.argv[1], sys.argv[2], int(sys.argv[3]), jobs=1, commit_bytes=1 << 18)"
)


def killed_split(
    source: Path, output: Path, world_size: int, entries: int = 60, timeout: float = 120.0
) -> list[str]:
    """Start to split `source` and kill the process (SIGKILL: no handler runs, nothing is tidied up)
    as soon as the last rank's journal has that many entries; returns the names in `output` then.
    PortError where it came to none."""
    journal = output / WORK / f"{rank_folder(world_size - 1, world_size)}.jsonl"
    run = subprocess.Popen(
        [sys.executable, "-c", _SPLIT, str(source), str(output), str(world_size)],
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + timeout
    try:
        while run.poll() is None and time.monotonic() < end:
            if journal.is_file() and journal.read_bytes().count(b"\n") > entries:
                break
            time.sleep(0.002)
        begun = journal.is_file()
    finally:
        run.kill()
        _, said = run.communicate()
    if not begun:
        raise PortError(
            f"{output}: the split ended before it could be killed: {(said.splitlines() or ['no error'])[-1][-300:]}"
        )
    return sorted(p.name for p in output.iterdir())
