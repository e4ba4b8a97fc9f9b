"""Whether the values of a stored tensor can be a model's: finite, and not all zero; scales that are
normal numbers above 0.

Looked at while the bytes pass anyway, as integers: of a float's codes read as signed and as
unsigned numbers, those that are infinite or NaN are the largest.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import PortError
from .fp8 import FP8

# dtype: unsigned, signed, the first positive code that is not finite
_CODES: dict[torch.dtype, tuple[type, type, int]] = {
    FP8: (np.uint8, np.int8, 0x7F),
    torch.bfloat16: (np.uint16, np.int16, 0x7F80),
    torch.float16: (np.uint16, np.int16, 0x7C00),
    torch.float32: (np.uint32, np.int32, 0x7F800000),
}
_SMALLEST = torch.finfo(torch.float32).tiny
MAY_BE_ZERO = ("e_score_correction_bias",)


class ValueCheck:
    """Tiles of one tensor in, PortError out. allow_nonfinite lets weights pass that are NaN,
    infinite or all zero; scales are checked always, because no weight comes of a wrong one."""

    def __init__(self, name: str, file: Path, allow_nonfinite: bool = False) -> None:
        self.name, self.file, self._allow = name, file, allow_nonfinite
        self._zero = not name.endswith(MAY_BE_ZERO)
        self._bad, self._first, self._kind = 0, (0,), ""

    def tile(self, stored: Tensor, first_row: int = 0) -> bool:
        """Whether all values of these rows, as stored, are finite."""
        unsigned, signed, limit = _CODES.get(stored.dtype, (np.int8, np.int8, 0))
        codes: np.ndarray = stored.contiguous().view(torch.uint8).numpy().view(unsigned)
        if not codes.size:
            return True
        if stored.dtype == torch.int8:
            self._zero = self._zero and not codes.any()
            return True
        highest = int(codes.max())
        sign = 1 << (8 * stored.dtype.itemsize - 1)
        self._zero = self._zero and highest == 0
        if highest < sign + limit and int(codes.view(signed).max()) < limit:
            return True
        wrong = (~stored.float().isfinite()).nonzero()
        if not self._bad:
            row, *rest = wrong[0].tolist()
            self._first = (row + first_row, *rest)
            self._kind = "NaN" if stored[tuple(wrong[0])].float().isnan() else "infinite"
        self._bad += len(wrong)
        return False

    def scales(self, scale: Tensor, first_row: int = 0, what: str = "weight_scale_inv") -> None:
        """float32 factors of FP8 blocks, or of int8 rows [N, 1]."""
        low, high = (float(x) for x in scale.aminmax())
        if _SMALLEST <= low and high < math.inf:  # a NaN compares false
            return
        wrong = (~((scale >= _SMALLEST) & (scale < math.inf))).nonzero()
        row, column = wrong[0].tolist()
        raise PortError(
            f"{self.file}: {self.name}: {what} holds a negative, infinite or NaN value, 0 or a "
            f"subnormal: {len(wrong)}, first [{row + first_row}, {column}] = "
            f"{float(scale[row, column]):g}; the file is damaged or was quantised wrongly"
        )

    def end(self) -> None:
        if self._allow:
            return
        if self._bad:
            raise PortError(
                f"{self.file}: {self.name}: {self._bad} values are not finite, first {self._kind} at "
                f"{list(self._first)}; download the file again, or keep them with `dsv3-port shard --allow-nonfinite`"
            )
        if self._zero:
            raise PortError(
                f"{self.file}: {self.name}: all values are zero, as in a download that stopped; "
                "download the file again, or keep them with `dsv3-port shard --allow-nonfinite`"
            )


def check_values(
    name: str,
    file: Path,
    stored: Tensor,
    scale: Tensor | None,
    allow_nonfinite: bool = False,
    what: str = "weight_scale_inv",
) -> bool:
    """A whole tensor at once; returns whether it is finite."""
    check = ValueCheck(name, file, allow_nonfinite)
    finite = check.tile(stored)
    if scale is not None:
        check.scales(scale, what=what)
    check.end()
    return finite


def check_offsets(name: str, file: Path, offset: Tensor, first_row: int = 0) -> None:
    """weight_offset [N, 1] of int8 rows: zeros, for the operators know no other weights."""
    if (wrong := offset.nonzero()).numel():
        row = int(wrong[0, 0])
        raise PortError(
            f"{file}: {name}: weight_offset is not zero at {row + first_row} ({float(offset[row, 0]):g}): only "
            "symmetric weights are read"
        )
