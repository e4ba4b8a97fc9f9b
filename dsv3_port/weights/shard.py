"""The on-disk splitter: a published checkpoint becomes one folder per rank, streamed tensor by tensor.

Every source tensor is read once, cut for all ranks by the pieces of layout.py, and written straight to its place in
preallocated safetensors files, so memory holds a few tensors whatever the size of the model. A rank folder gets its
name, and the output its manifest, only when everything in it is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from ..errors import PortError
from ..model.decoder import DeepseekV3, build
from ..parallel import TensorParallel
from ..steps import PortPlan
from .checkpoint import Checkpoint
from .layout import Piece, Target, targets
from .load import by_source, check_sources

MANIFEST = "manifest.json"
FORMAT = 1
LAYOUT_FIELDS = ("tensor_parallel", "attention", "experts", "mlp")  # what of a plan decides names and shapes
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
FILE_BYTES = 4 << 30


def layout_of(plan: PortPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in LAYOUT_FIELDS}


def rank_folder(rank: int, world_size: int) -> str:
    return f"rank-{rank:05d}-of-{world_size:05d}"


def is_sharded(path: str | Path) -> bool:
    """Whether the folder was written (or begun) by `dsv3-port shard`."""
    return (Path(path) / MANIFEST).is_file() or any(Path(path).glob("rank-*-of-*"))


@dataclass(frozen=True)
class ShardReport:
    """What was (or, for a dry run, would be) done."""

    output: str
    world_size: int
    ranks: list[int]
    dtype: str
    bytes_per_rank: int
    tensors_read: int
    tensors_left_out: int
    parameters_filled: int  # of each rank
    peak_tensor_bytes: int  # largest single tensor in memory: source, its float32 form and one cut
    seconds: float
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        done = "would write" if self.dry_run else "wrote"
        return (f"{done} {len(self.ranks)} of {self.world_size} ranks, {self.bytes_per_rank / 2**30:.2f} GiB each "
                f"({self.dtype}), to {self.output}; {self.tensors_read} source tensors each used once, "
                f"{self.tensors_left_out} left out on purpose (MTP), {self.parameters_filled} parameters a rank filled "
                f"once; {self.seconds:.1f} s")


class RankFile:
    """One safetensors file of known content whose tensors are filled piece by piece, in any order."""

    def __init__(self, path: Path, wanted: list[Target], dtype: torch.dtype) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        self.offsets: dict[str, int] = {}
        for target in wanted:
            kind = target.dtype(dtype)
            size = torch.Size(target.shape).numel() * kind.itemsize
            header[target.name] = {"dtype": _CODES[kind], "shape": list(target.shape), "data_offsets": [at, at + size]}
            self.offsets[target.name] = at
            at += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.path, self.data, self.dtype = path, 8 + len(text), dtype
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.pwrite(self.fd, struct.pack("<Q", len(text)) + text, 0)
        os.ftruncate(self.fd, self.data + at)

    def write(self, target: Target, piece: Piece, source: Tensor) -> None:
        """Cut `source` as the piece says and write it at the block's place."""
        block = piece.cut(source).to(target.dtype(self.dtype)).contiguous()
        row = torch.Size(target.shape[len(piece.at) + 1 :]).numel()
        first = piece.offset
        for index, size in zip(reversed(piece.at), reversed(target.shape[1 : len(piece.at) + 1]), strict=True):
            first += index * size
        expected = piece.rows * row
        if block.numel() != expected:
            raise AssertionError(f"{target.name}: a piece of {piece.source} has {block.numel()} values, not {expected}")
        view = memoryview(block.view(torch.uint8).flatten().numpy().data)
        place = self.data + self.offsets[target.name] + first * row * block.element_size()
        while len(view):
            done = os.pwrite(self.fd, view, place)
            view, place = view[done:], place + done

    def close(self) -> None:
        os.fsync(self.fd)
        os.close(self.fd)


def shard_checkpoint(model_path: str | Path, output_path: str | Path, world_size: int, *,
                     plan: PortPlan | None = None, dtype: str = "bf16", ranks: list[int] | None = None,
                     dry_run: bool = False, progress: bool = False,
                     file_bytes: int = FILE_BYTES) -> ShardReport:
    """Split `model_path` (published format) for `world_size` ranks into `output_path`.

    plan decides names and shapes (default: the full port), dtype is bf16, fp16 or fp32 (FP8 blocks are dequantised),
    ranks limits what this call writes (several machines share one job). Raises PortError before anything is written
    where sizes do not divide, tensors are missing or unused, or the disk is too small.
    """
    start = time.perf_counter()
    plan = plan or PortPlan.full()
    if dtype not in DTYPES:
        raise PortError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if world_size > 1 and not plan.tensor_parallel:
        raise PortError(f"world size {world_size} needs the step 'tensor_parallel' in the plan")
    chosen = sorted(set(range(world_size) if ranks is None else ranks))
    if not chosen or chosen[0] < 0 or chosen[-1] >= world_size:
        raise PortError(f"ranks {chosen} are not within 0..{world_size - 1}")
    checkpoint = Checkpoint.open(model_path)
    wanted = {r: list(targets(checkpoint.config, plan, TensorParallel(r, world_size))) for r in chosen}
    tables = {r: by_source(w) for r, w in wanted.items()}
    skipped = check_sources(checkpoint, tables[chosen[0]])
    kind = DTYPES[dtype]
    per_rank = sum(torch.Size(t.shape).numel() * t.dtype(kind).itemsize for t in wanted[chosen[0]])
    largest = max(torch.Size(checkpoint.shape(n)).numel() for n in tables[chosen[0]])
    output = Path(output_path)
    _room(output, per_rank * len(chosen))

    def report(seconds: float) -> ShardReport:
        return ShardReport(str(output), world_size, chosen, dtype, per_rank, len(tables[chosen[0]]), len(skipped),
                           len(wanted[chosen[0]]), largest * (1 + 4 + 4), seconds, dry_run)

    if dry_run:
        return report(time.perf_counter() - start)
    _refuse_old(output, chosen, world_size)
    output.mkdir(parents=True, exist_ok=True)
    _write_ranks(checkpoint, output, wanted, tables, world_size, kind, progress, file_bytes)
    _finish(checkpoint, output, wanted, world_size, plan, dtype, skipped)
    return report(time.perf_counter() - start)


def _write_ranks(checkpoint: Checkpoint, output: Path, wanted: dict[int, list[Target]], tables: dict[int, Any],
                 world_size: int, kind: torch.dtype, progress: bool, file_bytes: int) -> None:
    """All files of all ranks, source tensor by source tensor; a rank folder gets its name when it is complete."""
    partial = {r: output / (rank_folder(r, world_size) + ".partial") for r in wanted}
    files: dict[int, dict[str, RankFile]] = {}
    try:
        for r, folder in partial.items():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            files[r] = {}
            groups = _groups(wanted[r], kind, file_bytes)
            for number, group in enumerate(groups, 1):
                path = folder / f"model-{number:05d}-of-{len(groups):05d}.safetensors"
                file = RankFile(path, group, kind)
                files[r] |= {t.name: file for t in group}
        first = next(iter(tables.values()))
        bar = tqdm(first, desc="shard", unit="tensor", disable=None if progress else True)
        for source in bar:
            uses = [(r, t, p) for r in wanted for t, p in tables[r][source]]
            keep = any(t.keep_float32 for _, t, _ in uses)
            value = checkpoint.read(source, torch.float32 if keep else kind)
            for r, target, piece in uses:
                files[r][target.name].write(target, piece, value)
    except OSError as error:
        raise PortError(f"{output}: writing stopped: {error.strerror or error}; nothing was completed") from error
    finally:
        for file in {id(f): f for fs in files.values() for f in fs.values()}.values():
            file.close()
    for r, folder in partial.items():
        names = {name: file.path.name for name, file in files[r].items()}
        total = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": names})
        os.replace(folder, output / rank_folder(r, world_size))


def _groups(wanted: list[Target], kind: torch.dtype, limit: int) -> list[list[Target]]:
    groups: list[list[Target]] = [[]]
    size = 0
    for target in wanted:
        new = torch.Size(target.shape).numel() * target.dtype(kind).itemsize
        if groups[-1] and size + new > limit:
            groups.append([])
            size = 0
        groups[-1].append(target)
        size += new
    return groups


def _room(output: Path, need: int) -> None:
    at = output.absolute()
    while not at.exists():
        at = at.parent
    free = shutil.disk_usage(at).free
    if need > free:
        raise PortError(f"{output}: {need / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free; give "
                        "another disk, or write fewer ranks here with --ranks")


def _refuse_old(output: Path, ranks: list[int], world_size: int) -> None:
    for folder in sorted(output.glob("rank-*-of-*")):
        if folder.suffix != ".partial" and not folder.name.endswith(f"-of-{world_size:05d}"):
            raise PortError(f"{output}: holds {folder.name}, written for another world size; give an empty folder")
    for r in ranks:
        if (output / rank_folder(r, world_size)).exists():
            raise PortError(f"{output / rank_folder(r, world_size)}: is already there; remove it, or give another "
                            "folder")


def fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 over config.json and the name and size of every weight file of a checkpoint."""
    text = hashlib.sha256((Path(checkpoint.path) / "config.json").read_bytes())
    for file in sorted(checkpoint.files):
        text.update(f"{Path(file).name}:{Path(file).stat().st_size}\n".encode())
    return text.hexdigest()


def _finish(checkpoint: Checkpoint, output: Path, wanted: dict[int, list[Target]], world_size: int, plan: PortPlan,
            dtype: str, skipped: list[str]) -> None:
    """config, tokenizer and, last, the manifest."""
    from .. import __version__

    source = Path(checkpoint.path)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                 "special_tokens_map.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copy2(source / name, output / name)
    shapes = {t.name: list(t.shape) for t in next(iter(wanted.values()))}
    manifest = {"format": FORMAT, "tool": f"dsv3-port {__version__}", "source": fingerprint(checkpoint),
                "world_size": world_size, "layout": layout_of(plan), "dtype": dtype,
                "left_out": skipped, "parameters": shapes}
    old = output / MANIFEST
    if old.is_file() and json.loads(old.read_text())["source"] != manifest["source"]:
        raise PortError(f"{old}: its other ranks come from another checkpoint; give an empty folder")
    _write_json(old, manifest)


def _write_json(path: Path, value: Any) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(new, path)


def read_manifest(path: str | Path) -> dict[str, Any]:
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise PortError(f"{path}: rank folders without {MANIFEST}: the split was not finished; run `dsv3-port shard` "
                        "again")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PortError(f"{file}: not readable as JSON: {error}") from error
    if manifest.get("format") != FORMAT:
        raise PortError(f"{file}: format {manifest.get('format')!r}, this version reads {FORMAT}; split again")
    return manifest


def load_shard(path: str | Path, plan: PortPlan, parallel: TensorParallel, device: torch.device,
               dtype: torch.dtype) -> DeepseekV3:
    """This rank's model from a folder that shard_checkpoint wrote; what does not fit is refused before any reading."""
    from ..config import DeepseekV3Config

    manifest = read_manifest(path)
    if manifest["world_size"] != parallel.world_size:
        raise PortError(f"{path}: written for world size {manifest['world_size']}, this run has {parallel.world_size}; "
                        f"start {manifest['world_size']} ranks or split again with --world-size {parallel.world_size}")
    if manifest["layout"] != layout_of(plan):
        raise PortError(f"{path}: written for the forms {manifest['layout']}, the plan asks for {layout_of(plan)}; "
                        "choose that plan or split again with --plan")
    folder = Path(path) / rank_folder(parallel.rank, parallel.world_size)
    if not folder.is_dir():
        raise PortError(f"{folder}: this rank's folder is missing; write it with --ranks {parallel.rank}")
    model = build(DeepseekV3Config.from_pretrained(path), plan, parallel, device, dtype)
    parameters = dict(model.named_parameters())
    for name in _fill(folder, parameters):
        del parameters[name]
    if parameters:
        raise PortError(f"{folder}: {len(parameters)} parameters are missing, first {sorted(parameters)[0]}; split "
                        "again")
    return model


def _fill(folder: Path, parameters: dict[str, Any]) -> list[str]:
    """Copy each stored tensor into its parameter; returns the names."""
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as stored, torch.no_grad():
                for name in stored.keys():
                    if name not in parameters:
                        raise PortError(f"{file}: {name} has no place in the model; split again")
                    value = stored.get_tensor(name)
                    if value.shape != parameters[name].shape:
                        raise PortError(f"{file}: {name} is {list(value.shape)}, the model wants "
                                        f"{list(parameters[name].shape)}; split again")
                    parameters[name].copy_(value)
                    names.append(name)
        except PortError:
            raise
        except Exception as error:  # safetensors raises its own kinds
            raise PortError(f"{file}: not readable as safetensors: {error}; split again") from error
    return names


