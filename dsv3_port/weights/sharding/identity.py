"""What a job is: what must agree for two runs to be parts of one."""

from __future__ import annotations

import json
from typing import Any

from ...plan import PortPlan
from ..checkpoint import Checkpoint
from ..content import hasher, side_files

FORMAT = 3
LAYOUT_FIELDS = (
    "tensor_parallel",
    "attention",
    "experts",
    "mlp",
)  # what of a plan decides names and shapes
_JOB = (
    "format",
    "source",
    "side_files",
    "world_size",
    "layout",
    "dtype",
    "file_bytes",
    "allow_nonfinite",
)


def layout_of(plan: PortPlan, quant_format: str = "") -> dict[str, Any]:
    """Forms that decide names and shapes. The MTP layer and int8 stand there only where they are: a
    split without them has the manifest that it always had."""
    fields = (*LAYOUT_FIELDS, "mtp") if plan.mtp else LAYOUT_FIELDS
    layout = {name: getattr(plan, name) for name in fields}
    if plan.quant != "none":
        layout["quant"] = plan.quant
    return layout | ({"quant_format": quant_format} if quant_format else {})


def fingerprint(checkpoint: Checkpoint) -> str:
    """A hash of config.json, of what says which tensors are int8, and of the name, size and header of
    every weight file: what tells two checkpoints apart before their values are read."""
    text = hasher()
    text.update((checkpoint.path / "config.json").read_bytes())
    if checkpoint.scheme is not None:
        text.update(checkpoint.scheme.file.read_bytes())
    for file in checkpoint.files:
        text.update(f"{file.name}:{file.stat().st_size}:".encode())
        text.update(json.dumps(checkpoint.header(file), sort_keys=True).encode())
    return str(text.hexdigest())


def identity(
    checkpoint: Checkpoint,
    world_size: int,
    layout: dict[str, Any],
    dtype: str,
    file_bytes: int,
    allow_nonfinite: bool = False,
) -> dict[str, Any]:
    """What must agree for two runs to be parts of one job, as far as it is known before values are
    read; their hash, `content`, joins it at the end. layout: `layout_of` its plan."""
    source, files = fingerprint(checkpoint), side_files(checkpoint.path)
    values = (FORMAT, source, files, world_size, layout, dtype, file_bytes, allow_nonfinite)
    return dict(zip(_JOB, values, strict=True))


_HASHES = {
    "source": "source checkpoint",
    "side_files": "files beside the weights",
    "content": "values of the source",
}


def differences(found: dict[str, Any], job: dict[str, Any]) -> str:
    """In what two jobs differ, as words; empty where they are the same."""
    words: list[str] = []
    for name in (*_JOB, "content"):
        mine, its = job.get(name), found.get(name)
        if mine == its or name not in job:
            continue
        if name == "side_files" and isinstance(its, dict) and isinstance(mine, dict):
            words += sorted(f for f in {*mine, *its} if mine.get(f) != its.get(f))
        elif name in _HASHES:
            words.append(_HASHES[name])
        else:
            words.append(f"{name} ({its}, not {mine})")
    return ", ".join(words)
