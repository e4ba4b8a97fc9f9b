"""Reading what the splitter wrote: a rank's model from its folder, and the check of every byte
against the hashes."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tqdm import tqdm

from ...config import DeepseekV3Config
from ...errors import PortError
from ...model.decoder import DeepseekV3, build
from ...parallel import TensorParallel
from ...steps import PortPlan
from ..layout import Target, targets
from .manifest import MANIFEST, check_fits, rank_folder, read_manifest, read_rank_manifest
from .plan import DTYPES, Block, RankPlan, differences
from .ranks import tensor_hash

_CHUNK = 8 << 20


def load_shard(
    path: str | Path,
    plan: PortPlan,
    parallel: TensorParallel,
    device: torch.device,
    dtype: torch.dtype,
    check_hashes: bool = False,
) -> DeepseekV3:
    """This rank's model from a folder that shard_checkpoint wrote; what does not fit is refused
    before any reading.

    World size, forms, source and the sizes of the files are always held against the manifests;
    check_hashes reads everything once more and compares the hashes.
    """
    manifest = read_manifest(path)
    check_fits(path, manifest, parallel.world_size, plan)
    folder = Path(path) / rank_folder(parallel.rank, parallel.world_size)
    check_rank(folder, manifest, parallel.rank)
    if check_hashes:
        verify_shards(path, [parallel.rank])
    model = build(DeepseekV3Config.from_pretrained(path), plan, parallel, device, dtype)
    parameters = dict(model.named_parameters())
    for name in _fill(folder, parameters):
        del parameters[name]
    if parameters:
        raise PortError(
            f"{folder}: {len(parameters)} parameters are missing, first {sorted(parameters)[0]}; split "
            "again"
        )
    return model


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
    if want != hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest():
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
                        raise PortError(
                            f"{file}: {name} is {list(value.shape)}, the model wants "
                            f"{list(parameters[name].shape)}; split again"
                        )
                    parameters[name].copy_(value)
                    names.append(name)
        except PortError:
            raise
        except Exception as error:  # safetensors raises its own kinds
            raise PortError(f"{file}: not readable as safetensors: {error}; split again") from error
    return names


def verify_shards(
    path: str | Path, ranks: list[int] | None = None, *, jobs: int = 2, progress: bool = False
) -> int:
    """Read the ranks back (default: all) and compare every header and tensor with the manifests;
    returns the bytes.

    Raises PortError that names the first tensor that differs.
    """
    manifest = read_manifest(path)
    world = manifest["world_size"]
    plan = PortPlan(**manifest["layout"])
    wanted = list(targets(DeepseekV3Config.from_pretrained(path), plan, TensorParallel(0, world)))
    rank_plan = RankPlan(wanted, DTYPES[manifest["dtype"]], manifest["file_bytes"])
    chosen = list(range(world)) if ranks is None else ranks
    total = rank_plan.nbytes * len(chosen)
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
            for file in rank_plan.files:
                with (folder / file.name).open("rb") as stream:
                    if stream.read(len(file.head)) != file.head:
                        raise PortError(
                            f"{folder / file.name}: its header is damaged; remove {folder} and write it "
                            f"again with --ranks {rank}"
                        )

            def check(
                item: tuple[Target, list[Block]], folder: Path = folder, stored: dict = stored
            ) -> int:
                target, blocks = item
                return _check_tensor(folder, rank_plan, target, blocks, stored)

            for nbytes in pool.map(check, rank_plan.by_target()):
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
            digest, left = hashlib.sha256(), block.nbytes
            while left:
                part = stream.read(min(left, _CHUNK))
                if not part:
                    raise PortError(
                        f"{file}: ends inside {target.name}; remove {folder} and split again"
                    )
                digest.update(part)
                left -= len(part)
            digests.append(digest.digest())
    if tensor_hash(digests) != stored.get(target.name, {}).get("sha256"):
        raise PortError(
            f"{file}: {target.name} differs from its hash in the manifest; remove {folder} and run the "
            "same `dsv3-port shard` again"
        )
    return sum(b.nbytes for b in blocks)
