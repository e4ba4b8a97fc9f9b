"""What every component of the model is built from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .. import ops
from ..config import DeepseekV3Config
from ..errors import PortError
from ..ops.providers import GroupedMatmul, by_torch_npu
from ..parallel import SINGLE, TensorParallel
from ..plan import PortPlan
from .int8 import require_int8


@dataclass(frozen=True)
class BuildContext:
    """Sizes, forms, this rank's place, where parameters lie, and who multiplies the experts."""

    config: DeepseekV3Config
    plan: PortPlan
    parallel: TensorParallel = SINGLE
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32
    gmm: GroupedMatmul = by_torch_npu

    def require(self) -> None:
        """PortError where this world, device or dtype cannot have the plan."""
        world = self.parallel.world_size
        if world > 1 and not self.plan.tensor_parallel:
            raise PortError(
                f"world size {world} needs the step 'tensor_parallel' in the plan"
            )
        if self.int8:
            require_int8(torch.device(self.device).type, self.dtype, self.gmm)
        if self.plan.decode_attention == "split":
            widths = self.config.kv_lora_rank, self.config.qk_rope_head_dim
            ops.require_split_attention(torch.device(self.device), self.dtype, *widths)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        """A parameter without values; weights/load.py fills every one or raises."""
        return nn.Parameter(
            torch.empty(shape, device=self.device, dtype=dtype or self.dtype),
            requires_grad=False,
        )

    @property
    def int8(self) -> bool:
        return self.plan.quant == "w8a8"

    @property
    def nz(self) -> bool:
        return self.plan.weight_format == "nz"

    def matrix(self, *shape: int) -> nn.Parameter:
        """A matrix [out, in], or a stack of them, that is int8 where the plan says so; for
        FRACTAL_NZ [in, out], as the products take it."""
        *stack, outputs, inputs = shape
        if self.nz:
            outputs, inputs = inputs, outputs
        return self.empty(
            *stack, outputs, inputs, dtype=torch.int8 if self.int8 else None
        )

    def scale(self, *shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
        """The scales of an int8 matrix, or of a stack of them: one a row."""
        return self.empty(*shape, 1, dtype=dtype)

    def share(self, total: int, what: str) -> int:
        return self.parallel.share(total, what) if self.plan.tensor_parallel else total
