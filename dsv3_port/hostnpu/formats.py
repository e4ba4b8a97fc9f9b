"""FRACTAL_NZ: how its bytes lie, which tensors lie so, and which operators read them.

A tensor [..., K, N] lies as [..., ceil(N / C0), ceil(K / 16), 16, C0] with zeros behind K and N: element
(r, c) is at [c // C0, r // 16, r % 16, c % C0]. C0 is 32 for int8, 16 for two bytes (Ascend/op-plugin,
npu_format_cast). torch_npu allocates and tags, its casts are launched past the dispatcher (launched.py).
Its other internal formats stay tags on plain order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.memory import FRACTAL_NZ
from .memory import at_address, plain

ROWS = 16
Shape = tuple[int, ...]

# operator of torch_npu -> its inputs that may lie in FRACTAL_NZ: the documents of Ascend/op-plugin
INPUTS: dict[str, tuple[str, ...]] = {
    "npu_quant_matmul": ("x2",),
    "npu_grouped_matmul": ("weight",),
    **dict.fromkeys(
        (
            "npu_mla_prolog",
            "npu_mla_prolog_v2",
            "npu_mla_prolog_v3",
            "npu_mla_prolog_v3_functional",
        ),
        ("weight_dq", "weight_uq_qr", "weight_dkv_kr"),
    ),
}
# of aten: matrix products, copies, comparisons. On a card the runtime puts them into plain order first,
# and those of more operators
ATEN = frozenset(
    """
_copy_from _to_copy addmm bmm clone copy_ eq equal ge gt le linear lt matmul mm ne
""".split()
)


@dataclass(frozen=True)
class Layout:
    """Of a tensor in FRACTAL_NZ: its shape in plain order, and C0."""

    shape: Shape
    c0: int

    @property
    def stored(self) -> Shape:
        return stored_shape(self.shape, self.c0)


# by the address of a tensor that was cast. Addresses are used again: layout_of asks the tensor itself
made: dict[int, Layout] = {}


def stored_shape(shape: Sequence[int], c0: int) -> Shape:
    *outer, k, n = shape
    return (*outer, -(-n // c0), -(-k // ROWS), ROWS, c0)


def to_nz(x: Tensor, c0: int) -> Tensor:
    """[..., K, N] -> a copy [..., ceil(N / c0), ceil(K / 16), 16, c0]."""
    stored = stored_shape(x.shape, c0)
    if not x.numel():
        return x.new_zeros(stored)
    k, n = x.shape[-2:]
    padded = F.pad(x, (0, -n % c0, 0, -k % ROWS))
    blocks = padded.unflatten(-1, (-1, c0)).unflatten(-3, (-1, ROWS))
    return blocks.movedim(-2, -4).contiguous()


def from_nz(stored: Tensor, shape: Sequence[int]) -> Tensor:
    """[..., N1, K1, 16, c0] -> a copy of this shape [..., K, N]."""
    rows = stored.movedim(-4, -2).flatten(-4, -3).flatten(-2, -1)
    return rows[..., : shape[-2], : shape[-1]].contiguous()


def layout_of(x: Tensor) -> Layout | None:
    """Of the tensor in FRACTAL_NZ that x is, or is a view of; None: it lies in plain order."""
    if not made or torch.ops.npu.get_npu_format(x) != FRACTAL_NZ:
        return None
    found = made.get(x.untyped_storage().data_ptr())
    if found is None:
        raise NotImplementedError(
            "a FRACTAL_NZ tensor that no npu_format_cast made: the host stand-in does not know its shape"
        )
    return found


def in_plain_order(host: Tensor, layout: Layout) -> Tensor:
    """A copy in plain order of what `host`, a CPU tensor on the memory of one in FRACTAL_NZ, is a view of."""
    memory = host.untyped_storage()
    strides = torch.empty(layout.stored, device="meta").stride()
    lying = at_address(memory.data_ptr(), memory.nbytes(), host.dtype, layout.stored, strides)
    values = from_nz(lying, layout.shape)
    return values.as_strided(host.size(), host.stride(), host.storage_offset())


def host(x: Tensor) -> Tensor:
    """An npu tensor as a CPU tensor in plain order: its memory, or of FRACTAL_NZ a copy."""
    layout = layout_of(x)
    return plain(x) if layout is None else in_plain_order(plain(x), layout)


# ---- arguments of a kernel -----------------------------------------------------------------------

Place = tuple[int | str, int | None]  # position or name of an argument, and its place in a list


def _places(
    op: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Iterator[tuple[str, Place, Tensor]]:
    """(name, place, tensor) of every npu tensor among the arguments."""
    names = [a.name for a in op._schema.arguments]
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for key, value in given:
        listed = isinstance(value, (list, tuple))
        name = names[key] if isinstance(key, int) else key
        for i, x in enumerate(value if listed else (value,)):
            if isinstance(x, Tensor) and x.device.type == "npu":
                yield name, (key, i if listed else None), x


def nz_arguments(
    op: Any, written: Sequence[tuple[int, str]], args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[Place, Layout]:
    """Where an operator is given FRACTAL_NZ, with its layout. NotImplementedError names
    the operator where it does not take that, as torch_npu does."""
    found: dict[Place, Layout] = {}
    if not made:
        return found
    outputs = {name for _, name in written}
    for name, place, x in _places(op, args, kwargs):
        layout = layout_of(x)
        if layout is None:
            continue
        short = op._schema.name.partition("::")[2]
        ours = op._schema.name.startswith("npu::")
        if name in outputs or not (name in INPUTS.get(short, ()) if ours else short in ATEN):
            what = "write into" if name in outputs else "support"
            raise NotImplementedError(
                f"Current operator {short} do not {what} internal format: {name} is FRACTAL_NZ; make it plain "
                "by npu_format_cast(x, 2) first"
            )
        found[place] = layout
    return found


def replaced(
    places: dict[Place, Layout], args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The host arguments of a kernel with those in FRACTAL_NZ in plain order."""
    args, kwargs = list(args), dict(kwargs)
    for (key, i), layout in places.items():
        holder: Any = args if isinstance(key, int) else kwargs
        if i is None:
            holder[key] = in_plain_order(holder[key], layout)
        else:
            values = list(holder[key])
            values[i] = in_plain_order(values[i], layout)
            holder[key] = values
    return args, kwargs


class Reading:
    """A kernel in a captured graph: what lies in FRACTAL_NZ is read at each replay."""

    def __init__(self, fn: Callable[..., Any], places: dict[Place, Layout]) -> None:
        self.fn, self.places = fn, places
        self.__name__ = str(getattr(fn, "__name__", fn))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = replaced(self.places, args, kwargs)  # type: ignore[assignment]
        return self.fn(*args, **kwargs)
