"""What lies beside split weights and says what they are: one manifest for the job and one in each
rank's folder.

OUT/manifest.json                        world size, forms, dtype, source, the ranks that are complete
OUT/config.json, tokenizer.json, ...     copied from the source
OUT/rank-00000-of-00008/manifest.json    sizes of its files; shape, dtype and hash of every tensor
OUT/rank-00000-of-00008/*.safetensors    the weights, with an index
OUT/.shard/                              while a job is unfinished: journals and locks (journal.py)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ...errors import PortError
from ...files import read_json, write_atomic, write_json
from ...plan import PortPlan
from ...typed import sentence
from ...version import __version__
from ..content import hash_bytes, hash_file, of_tensors, side_file
from .identity import FORMAT, differences, layout_of
from .plan import INDEX

MANIFEST = "manifest.json"
WORK = ".shard"
_Hash = Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
_Size = Annotated[int, Field(ge=0)]


class _Layout(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    tensor_parallel: bool
    attention: str
    experts: str
    mlp: str
    mtp: Literal[True] | None = None
    quant: Literal["w8a8"] | None = None
    quant_format: Literal["compressed-tensors", "ascend"] | None = None


class _Job(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    format: int
    source: _Hash
    side_files: dict[str, _Hash]
    content: _Hash
    world_size: Annotated[int, Field(ge=1, le=65536)]
    layout: _Layout
    dtype: Literal["bf16", "fp16", "fp32"]
    file_bytes: Annotated[int, Field(ge=1)]
    allow_nonfinite: bool


class _JobManifest(_Job):
    """OUT/manifest.json. contents: source tensor -> hash of what was read of it."""

    tool: str
    ranks: dict[str, str]
    complete: bool
    left_out: list[str]
    parameters: dict[str, list[_Size]]
    contents: dict[str, _Hash]


class _Tensor(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    shape: list[_Size]
    dtype: str
    xxh3: _Hash


class _RankManifest(_Job):
    """OUT/rank-*/manifest.json. files: name -> bytes."""

    rank: _Size
    tensors: dict[str, _Tensor]
    files: dict[str, _Size]


def rank_folder(rank: int, world_size: int) -> str:
    return f"rank-{rank:05d}-of-{world_size:05d}"


def is_sharded(path: str | Path) -> bool:
    """Whether the folder was written (or begun) by `dsv3-port shard`."""
    folder = Path(path)
    if (folder / INDEX).is_file() and (folder / "config.json").is_file():
        return False  # one rank's folder of int8 matrices is a checkpoint of its own
    return (folder / MANIFEST).is_file() or any(folder.glob("rank-*-of-*"))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The job's manifest; PortError where the split was not finished, or another version wrote it."""
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise PortError(
            f"{path}: rank folders without {MANIFEST}: the split was not finished; run the same "
            "`dsv3-port shard` again, it goes on from what is there"
        )
    return _read(file, _JobManifest)


def read_rank_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST
    if not file.is_file():
        raise PortError(f"{folder}: has no {MANIFEST}; remove it and split this rank again")
    return _read(file, _RankManifest)


def _read(file: Path, kind: type[_Job]) -> dict[str, Any]:
    """As it was written by this version, every field of its type, or PortError."""
    manifest = read_json(file)
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise PortError(f"{file}: format {found!r}, this version reads {FORMAT}; split again")
    try:
        kind.model_validate(manifest)
    except ValidationError as error:
        raise PortError(f"{file}: {sentence(error)}; split again") from error
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
    if plan.mtp and not manifest["layout"].get("mtp"):
        raise PortError(
            f"{path}: was split without the multi-token prediction (MTP) layer: split again with `dsv3-port "
            "shard --mtp`, or leave the step 'mtp' (NUM_SPECULATIVE_TOKENS) out"
        )
    quant = manifest["layout"].get("quant", "none")
    if quant != plan.quant:
        does = "was split to int8 matrices (w8a8), and the plan has none"
        if quant == "none":
            does = "was split without int8 matrices, and the plan has them (w8a8)"
        raise PortError(
            f"{path}: {does}: choose that plan (`--plan …+w8a8`, PortPlan.quant), or split again with or "
            "without --quant w8a8"
        )
    if _forms(manifest["layout"]) != _forms(layout_of(plan)):
        raise PortError(
            f"{path}: written for the forms {manifest['layout']}, the plan asks for {layout_of(plan)}; "
            "choose that plan, or split again with --plan"
        )


def _forms(layout: dict[str, Any]) -> dict[str, Any]:
    """What of a layout a plan must have alike: a layer too many is no matter."""
    return {k: v for k, v in layout.items() if k not in ("mtp", "quant_format")}


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


def earlier_contents(output: Path, job: dict[str, Any]) -> dict[str, str]:
    """Source tensor -> hash, as an earlier run of this job noted; empty where there is none.
    PortError where it was another job."""
    if not (output / MANIFEST).is_file():
        return {}
    manifest = read_manifest(output)
    other = differences(manifest, job)
    if other:
        raise PortError(f"{output}: is already there and differs in {other}; give an empty folder")
    return dict(manifest["contents"])


def finish(
    source: Path,
    output: Path,
    job: dict[str, Any],
    contents: dict[str, str],
    left_out: list[str],
    shapes: dict[str, list[int]],
    name_ranks: Callable[[str], None],
) -> list[int]:
    """config, tokenizer and the manifest of every rank that is complete so far; returns those
    ranks. name_ranks(content) gives this run's ranks their names.

    Several machines may end at the same time: the last one finds the others' ranks and completes
    the manifest. They compare what they read under a lock, before a rank gets its name.
    """
    work = output / WORK
    job = {**job, "content": of_tensors(contents)}
    with _locked(work / "manifest.lock"):
        differing = [n for n, h in earlier_contents(output, job).items() if contents.get(n) != h]
        if differing:
            raise PortError(
                f"{output}: another run of this job read another {differing[0]}; the sources differ: "
                "take one of them, and give an empty folder"
            )
        name_ranks(job["content"])
        for name, want in job["side_files"].items():
            _copy(side_file(source, name), output / name, want)
        ranks = {}
        for rank in range(job["world_size"]):
            file = output / rank_folder(rank, job["world_size"]) / MANIFEST
            if file.is_file() and not differences(_read(file, _RankManifest), job):
                ranks[str(rank)] = hash_file(file)
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
                "contents": contents,
            },
        )
    if complete:  # nothing is left to lock or to go on with
        shutil.rmtree(work, ignore_errors=True)
    return [int(r) for r in ranks]


def _copy(file: Path, target: Path, want: str) -> None:
    """A side file as it was when the job began, with its mode."""
    content = file.read_bytes()
    if hash_bytes(content) != want:
        raise PortError(f"{file}: was changed while the split ran; run the same command again")
    write_atomic(target, content, file.stat().st_mode & 0o666 | 0o600)
