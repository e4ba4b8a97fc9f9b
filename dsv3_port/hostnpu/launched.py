"""Operators that torch_npu's C++ code launches itself, past PyTorch's dispatcher
(aclopCompileAndExecute).

cann_host.c hands over their names, shapes and addresses. An operator that is not in `OPERATORS` is
refused by name: returning success would leave results that were never computed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.memory import FRACTAL_NZ
from . import formats, kernels, library


class Desc(ctypes.Structure):
    """struct desc of cann_host.c: what aclCreateTensorDesc was told."""

    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("storage", ctypes.c_int32),
        ("ndim_stored", ctypes.c_int32),
        ("dims", ctypes.c_int64 * 16),
        ("stored", ctypes.c_int64 * 16),
    ]


class Buffer(ctypes.Structure):
    """struct buffer of cann_host.c."""

    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t)]


# aclDataType
DTYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    9: torch.int64,
    11: torch.float64,
    12: torch.bool,
    27: torch.bfloat16,
}


def _pad(x: Tensor, pads: Tensor, value: Tensor) -> Tensor:
    """pads: (before, after) of each dimension, first dimension first; F.pad wants the last one
    first."""
    return F.pad(x, pads.view(-1, 2).flip(0).flatten().tolist(), value=value.item())


def _one_hot(x: Tensor, depth: Tensor, on: Tensor, off: Tensor) -> Tensor:
    return torch.where(F.one_hot(x.long(), int(depth)).bool(), on, off)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Cast": lambda x: x,
    "Fill": lambda dims, value: value.reshape(()),
    "Identity": lambda x: x,
    "OneHot": _one_hot,
    "PadV3": _pad,
    "TensorMove": lambda x: x,
    "ZerosLike": torch.zeros_like,
}
_callback: Any = None  # must live as long as the process


def _tensor(buffer: Any, dtype: torch.dtype, shape: Any) -> Tensor:
    strides = torch.empty(shape, device="meta").stride()
    return kernels.at_address(buffer.contents.data, buffer.contents.size, dtype, shape, strides)


def _layout(desc: Any) -> formats.Layout | None:
    """Of an operand in FRACTAL_NZ, as torch_npu allocated it; None: plain order, or a format that is a
    tag here."""
    if desc.storage != FRACTAL_NZ:
        return None
    shape = tuple(desc.dims[: desc.ndim])
    stored = tuple(desc.stored[: desc.ndim_stored])
    layout = formats.Layout(shape if len(shape) > 1 else (1, *shape), stored[-1])
    if layout.stored != stored:
        raise ValueError(f"FRACTAL_NZ of {shape} is not {stored}")
    return layout


def _read(desc: Any, buffer: Any) -> Tensor:
    """An input in plain order: its memory, or of FRACTAL_NZ a copy. CANN puts such a conversion before an
    operator that it compiles."""
    described, dtype = desc.contents, DTYPES[desc.contents.dtype]
    shape = described.dims[: described.ndim]
    layout = _layout(described)
    if layout is None:
        return _tensor(buffer, dtype, shape)
    return formats.from_nz(_tensor(buffer, dtype, layout.stored), layout.shape).view(shape)


def _write(desc: Any, buffer: Any, value: Tensor) -> None:
    described, dtype = desc.contents, DTYPES[desc.contents.dtype]
    layout = _layout(described)
    if layout is None:
        _tensor(buffer, dtype, described.dims[: described.ndim]).copy_(value)
        return
    whole = torch.empty(layout.shape, dtype=dtype).copy_(value)
    _tensor(buffer, dtype, layout.stored).copy_(formats.to_nz(whole, layout.c0))
    formats.made[buffer.contents.data] = layout


def _on_launch(
    name: bytes, n_in: int, in_desc: Any, in_data: Any, n_out: int, out_desc: Any, out_data: Any
) -> int:
    """0: done. An exception cannot cross the C frames; cann_host.c names the operator in its error."""
    fn = OPERATORS.get(name.decode())
    if fn is None or n_out != 1:
        return 1
    try:
        operands = [*(in_desc[i] for i in range(n_in)), out_desc[0]]
        if kernels.recorder.capturing():
            if any(d.contents.storage == FRACTAL_NZ for d in operands):
                return 1  # a conversion is no part of a graph
            args = [_read(in_desc[i], in_data[i]) for i in range(n_in)]
            described = out_desc[0].contents
            shape = described.dims[: described.ndim]
            out = _tensor(out_data[0], DTYPES[described.dtype], shape)
            kernels.recorder.record(fn, args, {}, [out])
        else:
            kernels.recorder.flush()
            args = [_read(in_desc[i], in_data[i]) for i in range(n_in)]
            _write(out_desc[0], out_data[0], fn(*args))
        return 0
    except Exception:
        return 1


def install() -> None:
    global _callback
    arrays: list[Any] = [ctypes.POINTER(ctypes.POINTER(t)) for t in (Desc, Buffer)]
    side = [ctypes.c_int, *arrays]  # how many, their descriptions, their memory
    _callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, *side, *side)(_on_launch)
    library.loaded().hostcann_set_launch(_callback)
