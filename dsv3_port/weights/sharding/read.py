"""Reading what the splitter wrote: a rank's model from its folder, and the check of every byte
against the hashes."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from ...config import DeepseekV3Config
from ...errors import PortError
from ...files import read_json
from ...model.decoder import DeepseekV3, build
from ...model.weight_format import as_published
from ...ops.providers import GroupedMatmul, by_torch_npu
from ...parallel import TensorParallel
from ...plan import PortPlan
from ..content import SIDE_FILES, Remembered, hash_file, hasher
from ..int8_formats import check_described
from ..layout import Target, of_mtp
from .identity import differences
from .manifest import MANIFEST, check_fits, rank_folder, read_manifest, read_rank_manifest
from .plan import Block, RankPlan, rank_plan
from .ranks import tensor_hash

_CHUNK = 8 << 20


def load_shard(
    path: str | Path,
    plan: PortPlan,
    parallel: TensorParallel,
    device: torch.device,
    dtype: torch.dtype,
    gmm: GroupedMatmul = by_torch_npu,
    check_hashes: bool = False,
) -> DeepseekV3:
    """This rank's model from a folder that shard_checkpoint wrote; what does not fit is refused
    before any reading.

    World size, forms, source, the files beside the weights, sizes and headers are always held
    against the manifests, and every tensor's bytes where they have not been read before;
    check_hashes reads everything once more, in any case.
    """
    manifest = read_manifest(path)
    check_fits(path, manifest, parallel.world_size, plan)
    check_side_files(Path(path), manifest)
    files = _plan_of(path, manifest)
    folder = Path(path) / rank_folder(parallel.rank, parallel.world_size)
    stored = check_rank(folder, manifest, parallel.rank)["tensors"]
    check_headers(folder, files, parallel.rank)
    if form := manifest["layout"].get("quant_format"):
        check_described(folder, files.targets, form)
    if check_hashes:
        verify_shards(path, [parallel.rank])
    model = build(DeepseekV3Config.from_pretrained(path), plan, parallel, device, dtype, gmm)
    parameters = as_published(model)
    held = [t for t in files.targets if t.pieces[0].part != "offset"]
    shapes = {t.name: t.shape for t in held if plan.mtp or not of_mtp(t.name)}
    if shapes != {name: tuple(p.shape) for name, p in parameters.items()}:
        raise AssertionError(f"{folder}: layout and model disagree")
    _fill(folder, files, parameters, stored)
    return model


def _plan_of(path: str | Path, manifest: dict[str, Any]) -> RankPlan:
    config, values = DeepseekV3Config.from_pretrained(path), read_json(Path(path) / "config.json")
    sizes = manifest["world_size"], manifest["dtype"], manifest["file_bytes"]
    return rank_plan(config, manifest["layout"], *sizes, values)


def check_side_files(path: Path, manifest: dict[str, Any]) -> None:
    """PortError where config, tokenizer or template is not the one that was split."""
    want = manifest["side_files"]
    for name in SIDE_FILES:
        found = hash_file(path / name) if (path / name).exists() else None
        if found == want.get(name):
            continue
        what = (
            "is missing"
            if found is None
            else "was not there"
            if name not in want
            else "differs from the file that was there"
        )
        raise PortError(
            f"{path / name}: {what} when the weights were split; put the split's own back, or split "
            "again with the one you want"
        )


def check_rank(folder: Path, manifest: dict[str, Any], rank: int) -> dict[str, Any]:
    """A rank's manifest, after the checks that cost nothing: it is there, of this job, and its
    files have their size."""
    if not folder.is_dir():
        raise PortError(f"{folder}: this rank's folder is missing; write it with --ranks {rank}")
    found = read_rank_manifest(folder)
    other = differences(found, {**manifest})
    if other or found.get("rank") != rank:
        raise PortError(
            f"{folder}: comes from another split ({other or 'rank ' + str(found.get('rank'))}); remove it "
            f"and write it again with --ranks {rank}"
        )
    want = manifest["ranks"].get(str(rank))
    if want != hash_file(folder / MANIFEST):
        raise PortError(
            f"{folder / MANIFEST}: is not the one that the job's {MANIFEST} knows; run the same "
            "`dsv3-port shard` again"
        )
    for name, size in found["files"].items():
        if not (folder / name).is_file():
            raise PortError(
                f"{folder / name}: is missing; remove {folder} and write it again with --ranks {rank}"
            )
        actual = (folder / name).stat().st_size
        if actual != size:
            raise PortError(
                f"{folder / name}: {actual} bytes, the manifest says {size}; remove {folder} and write it "
                f"again with --ranks {rank}"
            )
    return found


def check_headers(folder: Path, plan: RankPlan, rank: int) -> None:
    """Every header must be byte for byte the one that follows from config.json and the manifest."""
    for file in plan.files:
        with (folder / file.name).open("rb") as stream:
            if stream.read(len(file.head)) != file.head:
                raise PortError(
                    f"{folder / file.name}: its header is damaged or was edited; remove {folder} and "
                    f"write it again with --ranks {rank}"
                )


def _fill(folder: Path, plan: RankPlan, parameters: dict[str, Any], stored: dict[str, Any]) -> None:
    """Copy each stored tensor into its parameter; threads beside hash what has not been read
    before, from the same pages."""
    past = Remembered(folder, [folder / file.name for file in plan.files])
    by_file: dict[int, list[tuple[Target, list[Block]]]] = defaultdict(list)
    for target, blocks in plan.by_target():
        if target.name not in parameters:  # an MTP layer that is not asked for, zero offsets
            continue
        by_file[blocks[0].file].append((target, blocks))
    with ThreadPoolExecutor(2, "hash") as pool, torch.no_grad():
        for number, held in by_file.items():
            file = folder / plan.files[number].name
            try:
                opened = safe_open(file, framework="pt")
            except Exception as error:  # safetensors raises its own kinds
                raise PortError(f"{file}: not readable as safetensors: {error}") from error
            running = []
            with opened as values:
                for target, blocks in held:
                    value = values.get_tensor(target.name)
                    if past.hash_of(file, target.name) != stored[target.name]["xxh3"]:
                        work = pool.submit(_hash_value, value, blocks)
                        running.append((target.name, work))
                    parameters[target.name].copy_(value)
            for name, work in running:
                found = work.result()
                _same_hash(folder, file, name, found, stored)
                past.add(file, name, found)
    past.save()


def _hash_value(value: Tensor, blocks: list[Block]) -> str:
    data = value.flatten().view(torch.uint8).numpy().data
    digests, at = [], 0
    for block in blocks:
        digest = hasher()
        digest.update(data[at : at + block.nbytes])
        digests.append(digest.digest())
        at += block.nbytes
    return tensor_hash(digests)


def _same_hash(folder: Path, file: Path, name: str, found: str, stored: dict[str, Any]) -> None:
    if found != stored.get(name, {}).get("xxh3"):
        raise PortError(
            f"{file}: {name} differs from its hash in the manifest; remove {folder} and run the "
            "same `dsv3-port shard` again"
        )


def verify_shards(
    path: str | Path, ranks: list[int] | None = None, *, jobs: int = 2, progress: bool = False
) -> int:
    """Read the ranks back (default: all) and compare every header and tensor with the manifests;
    returns the bytes.

    Raises PortError that names the first tensor that differs.
    """
    manifest = read_manifest(path)
    world = manifest["world_size"]
    check_side_files(Path(path), manifest)
    files = _plan_of(path, manifest)
    chosen = list(range(world)) if ranks is None else ranks
    total = files.nbytes * len(chosen)
    with (
        ThreadPoolExecutor(jobs, "verify") as pool,
        tqdm(
            total=total,
            desc="verify",
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        ) as bar,
    ):
        for rank in chosen:
            folder = Path(path) / rank_folder(rank, world)
            stored = check_rank(folder, manifest, rank)["tensors"]
            check_headers(folder, files, rank)

            def check(
                item: tuple[Target, list[Block]],
                folder: Path = folder,
                stored: dict[str, Any] = stored,
            ) -> int:
                target, blocks = item
                return _check_tensor(folder, files, target, blocks, stored)

            for nbytes in pool.map(check, files.by_target()):
                bar.update(nbytes)
    return total


def _check_tensor(
    folder: Path, plan: RankPlan, target: Target, blocks: list[Block], stored: dict[str, Any]
) -> int:
    file = folder / plan.files[blocks[0].file].name
    digests = []
    with file.open("rb") as stream:
        stream.seek(blocks[0].offset)
        for block in blocks:
            digest, left = hasher(), block.nbytes
            while left:
                part = stream.read(min(left, _CHUNK))
                if not part:
                    raise PortError(
                        f"{file}: ends inside {target.name}; remove {folder} and split again"
                    )
                digest.update(part)
                left -= len(part)
            digests.append(digest.digest())
    _same_hash(folder, file, target.name, tensor_hash(digests), stored)
    return sum(b.nbytes for b in blocks)
