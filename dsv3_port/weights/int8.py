"""W8A8 weights: a matrix as int8 codes with one float32 scale for each of its rows, which are the
layer's outputs.

weight[n, k] = codes[n, k] * scale[n];  scale[n] = max |weight[n]| / 127,  codes = rint(weight /
scale). All in float32 and straight from the published FP8 blocks: by way of bfloat16 about 7 % of
the codes would be another number. Activations get their scale while the model runs, one for each
token (model/int8.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .fp8 import stored_as_fp8
from .pieces import Part, Piece, Target

MOST = 127  # symmetric: -128 is never written
SCALE, OFFSET = "_scale", "_offset"  # behind the name of the weight
_BAND = 128  # rows at once: their float32 values stay in the processor's cache
_SMALLEST = torch.finfo(torch.float32).tiny

# what keeps the model's dtype, by the last name of its module, and why
KEPT: dict[str, str] = {
    "embed_tokens": "rows are looked up, nothing is multiplied",
    "norm": "one vector",
    "kv_b_proj": "absorbed: a product of each head with its own part, which no int8 operator is",
    "gate": "its scores choose the experts, in float32",
    "lm_head": "its error would be the logits' own",
    "eh_proj": "of the MTP layer: published in bfloat16 in the FP8 checkpoint too",
    "head": "of the MTP layer: a copy of lm_head",
}


def stored_as_int8(name: str) -> bool:
    """Whether W8A8 has this published tensor as int8: the matrices of attention and of all MLPs, but
    not kv_b_proj."""
    return stored_as_fp8(name) and name.split(".")[-2] != "kv_b_proj"


def kept(name: str) -> str | None:
    """Why a published tensor keeps the model's dtype; None of one that becomes int8."""
    if stored_as_int8(name):
        return None
    module = name.split(".")[-2]
    return KEPT["norm" if module.endswith("norm") else module]


def quantize_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [N, K] -> int8 codes [N, K] and float32 scale [N, 1]. A row of zeros, or of numbers so
    small that their scale is none, is zeros with scale 1. Values must be finite."""
    return quantize_bands(values.split(_BAND), torch.empty(values.shape, dtype=torch.int8))


def quantize_bands(bands: Iterable[Tensor], codes: Tensor) -> tuple[Tensor, Tensor]:
    """The same of rows that come in bands, into `codes` [N, K]: values that were made a moment ago are
    still in the processor's cache."""
    scale, at = torch.empty(codes.shape[0], 1), 0
    work = torch.empty(0)
    for rows in bands:
        out, factor = codes[at : at + len(rows)], scale[at : at + len(rows)]
        at += len(rows)
        work = work if work.shape == rows.shape else torch.empty_like(rows)
        # not aminmax: along a dimension that takes one number after the other
        largest = torch.abs(rows, out=work).amax(1, keepdim=True)
        torch.div(largest, MOST, out=factor).masked_fill_(factor < _SMALLEST, 1.0)
        # not beyond +-MOST: a normal factor is max / 127 to 2^-24, and where it is 1, nothing is near 1
        out.copy_(torch.div(rows, factor, out=work).round_())
    assert at == len(codes)
    return codes, scale


def dequantize_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 matrix that codes [N, K] and scale [N, 1] stand for."""
    return codes * scale.float()


def as_int8(wanted: Iterable[Target]) -> Iterator[Target]:
    """Targets of a model (layout.py) with int8 in place of the matrices that become it, and the
    scales [..., N, 1] of each behind it. A cut by outputs cuts the scales too; a cut by inputs
    leaves them whole, for a scale is of an output."""
    for target in wanted:
        if not stored_as_int8(target.pieces[0].source):
            yield target
            continue
        codes = tuple(replace(p, part="codes") for p in target.pieces)
        yield replace(target, pieces=codes, int8=True)
        scales = tuple(_scale_of(p) for p in target.pieces)
        shape = (*target.shape[:-1], 1)
        yield Target(target.name + SCALE, shape, scales, True, target.component)


def _scale_of(piece: Piece) -> Piece:
    start, length = (piece.start, piece.length) if piece.dim == 0 else (0, piece.source_shape[0])
    return replace(piece, dim=0, start=start, length=length, part="scale")


def with_offsets(wanted: Iterable[Target]) -> Iterator[Target]:
    """The targets of a file in the vendor's format: behind every scale the offsets, which are zero."""
    for target in wanted:
        yield target
        if target.pieces[0].part == "scale":
            pieces = tuple(replace(p, part="offset") for p in target.pieces)
            name = target.name.removesuffix(SCALE) + OFFSET
            yield replace(target, name=name, pieces=pieces)


def parts_of(codes: Tensor, scale: Tensor) -> dict[Part, Tensor]:
    """What pieces of a matrix are filled from, by their part."""
    return {"codes": codes, "scale": scale, "offset": torch.zeros_like(scale)}
