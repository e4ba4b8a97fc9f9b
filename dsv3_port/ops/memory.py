"""Hints about memory, without effect on values: prefetch and storage formats."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import PortError
from .checks import bad
from .table import on_npu, operator, torch_npu
from .wide import unsupported


def check_prefetch(
    input: Tensor, dependency: Tensor | None, max_size: int, offset: int = 0
) -> None:
    if max_size <= 0:
        raise bad("npu_prefetch", "max_size", max_size, "a positive number of bytes")
    if offset < 0:
        raise bad("npu_prefetch", "offset", offset, "0 or more bytes")


@operator(check_prefetch)
def npu_prefetch(input: Tensor, dependency: Tensor | None, max_size: int, offset: int = 0) -> None:
    """Load up to max_size bytes of a weight from byte offset into L2 once `dependency` exists.
    Nothing to do here."""


def check_format_cast(input: Tensor, acl_format: int, **other: Any) -> None:
    if not isinstance(acl_format, int) or isinstance(acl_format, bool):
        raise bad(
            "npu_format_cast", "acl_format", repr(acl_format), "an integer: 2 ND, 29 FRACTAL_NZ"
        )


@operator(check_format_cast)
def npu_format_cast(
    input: Tensor,
    acl_format: int,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """Another storage order (29 = FRACTAL_NZ, 2 = ND) of the same logical tensor: here the tensor
    itself."""
    unsupported("npu_format_cast", customize_dtype=customize_dtype, input_dtype=input_dtype)
    return input


ND, FRACTAL_NZ = 2, 29  # aclFormat


def fractal_nz(x: Tensor, name: str) -> Tensor:
    """x in FRACTAL_NZ on an NPU, before anything is compiled (no graph has that cast); elsewhere x.
    PortError with the matrix's name where torch_npu leaves it as it is. Internal formats stay allowed, as
    in programs that use them."""
    if not on_npu(x):
        return x
    torch_npu().npu.config.allow_internal_format = True
    made = npu_format_cast(x, FRACTAL_NZ)
    if (kept := storage_format(made)) != FRACTAL_NZ:
        raise PortError(
            f"{name}: torch_npu left it in format {kept}, not FRACTAL_NZ ({FRACTAL_NZ}): leave +nz and "
            "+mla_prolog (PortPlan.weight_format, PortPlan.mla_prolog) out"
        )
    return made


def storage_format(x: Tensor) -> int:
    """The storage format of a tensor on an NPU, an aclFormat: 29 is FRACTAL_NZ."""
    return int(torch_npu().get_npu_format(x))
