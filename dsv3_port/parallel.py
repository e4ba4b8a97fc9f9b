"""Tensor parallelism as the model sees it: which rank this is, and the two collectives it needs.
How ranks start, meet and end is engine/launch and engine/ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from .errors import PortError

all_gather = getattr(
    dist, "all_gather_single", dist.all_gather_into_tensor
)  # torch 2.13 deprecates the old name


def parts_side_by_side(flat: torch.Tensor, world: int) -> torch.Tensor:
    """Gathered parts, one below the other [W*B, ..., V/W] -> [B, ..., V] in rank order: without the
    move rows of different ranks would mix."""
    whole: torch.Tensor = flat.unflatten(0, (world, -1)).movedim(0, -2).flatten(-2)
    return whole


@dataclass(frozen=True)
class TensorParallel:
    """This rank's place. `group` None means world size 1, and no process group is needed. `arrange`
    orders what a gather leaves."""

    rank: int = 0
    world_size: int = 1
    group: Any = None
    arrange: Callable[[torch.Tensor, int], torch.Tensor] = field(
        default=parts_side_by_side, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise PortError(f"rank {self.rank} of world size {self.world_size} does not exist")

    def share(self, total: int, what: str) -> int:
        """total / W, or an error that says which world sizes would do."""
        if total % self.world_size:
            fit = [w for w in range(1, total + 1) if total % w == 0 and w <= 4 * self.world_size]
            raise PortError(
                f"{what} = {total} cannot be cut over {self.world_size} ranks; world sizes that fit: {fit}"
            )
        return total // self.world_size

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over ranks. With a world size of 1 the tensor comes back as it is."""
        if self.world_size > 1:
            self._need_group()
            dist.all_reduce(x, group=self.group)
        return x

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """[..., V/W] on each rank -> [..., V] in rank order, rows kept apart for any batch size."""
        if self.world_size == 1:
            return x
        self._need_group()
        x = x.contiguous()
        out = x.new_empty((self.world_size * x.shape[0], *x.shape[1:]))
        all_gather(out, x, group=self.group)
        return self.arrange(out, self.world_size)

    def _need_group(self) -> None:
        if self.group is None:
            raise PortError(
                f"a model cut for {self.world_size} ranks needs a process group: start it with "
                "dsv3_port.lab.run_ranks or torchrun, or use world size 1"
            )


SINGLE = TensorParallel()
