"""One side of a comparison, recorded where it runs: a plan on a device in a dtype, over one rank or
several.

The stages are the same on every rank (each ends behind its all-reduce, or is computed by all), so
that a run over ranks
has two questions: do its ranks agree with each other, and does rank 0 agree with the other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..engine.device import device_kind, pick_dtype, rank_device
from ..engine.launch import run_ranks
from ..engine.loading import load_model
from ..errors import PortError
from ..parallel import TensorParallel
from ..plan import PortPlan
from ..steps import TOLERANCE
from ..weights.sharding import is_sharded, read_manifest
from .compare import Report, compare_stages, stages_of
from .peer import peer_model
from .rank_calls import own_device

PEER = "transformers"


@dataclass(frozen=True)
class Side:
    """path: a published checkpoint or a folder of `dsv3-port shard`. world_size 0: that of the
    folder, else 1.

    dtype: a name that load_model takes. peer: transformers' model with the weights at `path`,
        whatever the plan.
    """

    path: str
    plan: PortPlan
    device: str = "cpu"
    dtype: str = "float32"
    world_size: int = 0
    peer: bool = False

    @property
    def ranks(self) -> int:
        """World size of the run. PortError where it cannot be had: a peer over ranks, a folder for
        another number."""
        stored = int(read_manifest(self.path)["world_size"]) if is_sharded(self.path) else 0
        if self.peer and (stored or self.world_size > 1):
            raise PortError(
                "transformers' model runs on one rank, from a published checkpoint: give such a folder"
            )
        if stored and self.world_size not in (0, stored):
            raise PortError(f"{self.path}: split for {stored} ranks, not {self.world_size}")
        return self.world_size or stored or 1

    def record(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> list[dict[str, Tensor]]:
        """Stage -> output for input_ids [B, S], of every rank."""
        if self.ranks == 1 and not is_sharded(self.path):
            plan = PortPlan.upstream() if self.peer else self.plan
            model = load_model(self.path, plan, self.device, self.dtype)
            return [stages_of(peer_model(model) if self.peer else model, input_ids, attention_mask)]
        where = rank_device(self.device, self.ranks)
        if where != device_kind(self.device):
            raise PortError(
                f"{self.ranks} ranks need as many cards of {self.device}: choose fewer, or device cpu"
            )
        mask = None if attention_mask is None else attention_mask.cpu()
        return run_ranks(
            _stages_of_rank,
            self.ranks,
            str(Path(self.path).resolve()),
            self.plan,
            where,
            self.dtype,
            input_ids.cpu(),
            mask,
            device=where,
        )


def _stages_of_rank(
    parallel: TensorParallel,
    path: str,
    plan: PortPlan,
    device: str,
    dtype: str,
    input_ids: Tensor,
    attention_mask: Tensor | None,
) -> dict[str, Tensor]:
    model = load_model(path, plan, own_device(parallel, device), dtype, parallel)
    return stages_of(model, input_ids, attention_mask)


def compare_sides(
    a: Side,
    b: Side,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    rtol: float | None = None,
    names: tuple[str, str] = ("a", "b"),
) -> list[Report]:
    """The report of a against b, behind one for each rank of either side that does not agree with
    its own rank 0.

    rtol: allowed max |difference| over the largest magnitude; default TOLERANCE of the coarser
        dtype.
    """
    if rtol is None:
        kinds = [str(pick_dtype(side.dtype)).removeprefix("torch.") for side in (a, b)]
        rtol = max(TOLERANCE.get(kind, TOLERANCE["float32"]) for kind in kinds)
    shape = tuple(input_ids.shape)
    recorded = [side.record(input_ids, attention_mask) for side in (a, b)]
    reports = [
        r
        for name, ranks in zip(names, recorded, strict=True)
        for r in _among_ranks(ranks, attention_mask, shape, name)
    ]
    return [
        *reports,
        compare_stages(recorded[0][0], recorded[1][0], attention_mask, shape, rtol, names),
    ]


def _among_ranks(
    ranks: Sequence[dict[str, Tensor]], mask: Tensor | None, shape: tuple[int, ...], name: str
) -> list[Report]:
    """Ranks add the same numbers, in the same order: they must agree bit for bit."""
    reports = [
        compare_stages(ranks[0], other, mask, shape, 0.0, (f"{name}, rank 0", f"{name}, rank {i}"))
        for i, other in enumerate(ranks[1:], 1)
    ]
    return [r for r in reports if not r.ok]


def default_dtype(device: torch.device) -> str:
    """What load_model takes where no dtype is given."""
    return "float32" if device.type == "cpu" else "bfloat16"
