"""What lies beside split weights and says what they are: one manifest for the job and one in each
rank's folder.

OUT/manifest.json                        world size, forms, dtype, source, the ranks that are complete
OUT/config.json, tokenizer.json, ...     copied from the source
OUT/rank-00000-of-00008/manifest.json    sizes of its files; shape, dtype and hash of every tensor
OUT/rank-00000-of-00008/*.safetensors    the weights, with an index
OUT/.shard/                              while a job is unfinished: journals and locks (journal.py)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...errors import PortError
from ...files import write_atomic, write_json
from ...steps import PortPlan
from ...version import __version__
from ..checkpoint import Checkpoint
from .plan import FORMAT, differences, layout_of

MANIFEST = "manifest.json"
WORK = ".shard"
_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def rank_folder(rank: int, world_size: int) -> str:
    return f"rank-{rank:05d}-of-{world_size:05d}"


def is_sharded(path: str | Path) -> bool:
    """Whether the folder was written (or begun) by `dsv3-port shard`."""
    return (Path(path) / MANIFEST).is_file() or any(Path(path).glob("rank-*-of-*"))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The job's manifest; PortError where the split was not finished, or another version wrote it."""
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise PortError(
            f"{path}: rank folders without {MANIFEST}: the split was not finished; run the same "
            "`dsv3-port shard` again, it goes on from what is there"
        )
    return _read(file)


def read_rank_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        raise PortError(f"{folder}: has no {MANIFEST}; remove it and split this rank again")
    return _read(file)


def _read(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        found = manifest.get("format")
    except (OSError, ValueError, AttributeError) as error:
        raise PortError(f"{file}: not readable as JSON: {error}; split again") from error
    if found != FORMAT:
        raise PortError(f"{file}: format {found!r}, this version reads {FORMAT}; split again")
    return dict(manifest)


def check_fits(
    path: str | Path, manifest: dict[str, Any], world_size: int, plan: PortPlan, asked: str = ""
) -> None:
    """PortError where the folder was written for other ranks or forms. asked: who set the world
    size, for the message."""
    written = manifest["world_size"]
    if written != world_size:
        by = f" ({asked})" if asked else ""
        raise PortError(
            f"{path}: written for world size {written}, WORLD_SIZE is {world_size}{by}: set it to "
            f"{written}, or split again with `dsv3-port shard --world-size {world_size}`"
        )
    if manifest["layout"] != layout_of(plan):
        raise PortError(
            f"{path}: written for the forms {manifest['layout']}, the plan asks for {layout_of(plan)}; "
            "choose that plan, or split again with --plan"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock on the manifest; its folder may vanish at any time, removed by the host that
    completed the job."""
    lock = FileLock(path)
    for attempt in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
            break
        except FileNotFoundError:
            if attempt == 99:
                raise
    try:
        yield
    finally:
        lock.release()


def finish(
    checkpoint: Checkpoint,
    output: Path,
    job: dict[str, Any],
    left_out: list[str],
    shapes: dict[str, list[int]],
) -> list[int]:
    """config, tokenizer and the manifest of every rank that is complete so far; returns those
    ranks.

    Several machines may end at the same time: the last one finds the others' ranks and completes
    the manifest.
    """

    work = output / WORK
    with _locked(work / "manifest.lock"):
        for name in _COPIED:
            if (checkpoint.path / name).is_file():
                write_atomic(output / name, (checkpoint.path / name).read_bytes())
        ranks = {}
        for rank in range(job["world_size"]):
            file = output / rank_folder(rank, job["world_size"]) / MANIFEST
            if file.is_file() and not differences(_read(file), job):
                ranks[str(rank)] = hashlib.sha256(file.read_bytes()).hexdigest()
        complete = len(ranks) == job["world_size"]
        write_json(
            output / MANIFEST,
            {
                **job,
                "tool": f"dsv3-port {__version__}",
                "ranks": ranks,
                "complete": complete,
                "left_out": left_out,
                "parameters": shapes,
            },
        )
    if complete:  # nothing is left to lock or to go on with
        shutil.rmtree(work, ignore_errors=True)
    return [int(r) for r in ranks]
