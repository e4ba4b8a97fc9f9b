"""Where do two models part? Both run the same tokens; every checkpoint on the way is compared, in
order.

Works between plans of dsv3_port and against transformers' DeepseekV3ForCausalLM, whose modules have
the same names; between devices, dtypes and numbers of ranks through check/sides.py, which records
each side where it runs. A stage is OK, DIFF (above the tolerance), SHAPE (not comparable) or
MISSING (in one model only).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import PortError
from ..messages import told, tr
from ..steps import TOLERANCE
from .report import Report, Row
from .stages import EXPERTS, order, record_stages, stages, stages_of

__all__ = [
    "Report",
    "Row",
    "compare_models",
    "compare_stages",
    "record_stages",
    "stages",
    "stages_of",
]


def compare_models(
    a: nn.Module,
    b: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    rtol: float | None = None,
    names: tuple[str, str] = ("a", "b"),
    *,
    cached: int = 0,
    within: str = "",
) -> Report:
    """Run both on input_ids [B, S] (left-padded where attention_mask is 0) and compare every stage.

    cached: the last so many tokens run as cached steps behind the prompt of the others, in a cache
    with spare room; compared are the stages of the last one. within: a module, such as
    "model.layers.2": compared is every module below it that both models have, in the order of their
    outputs. rtol: allowed max |difference| over the largest magnitude; default TOLERANCE of the
    coarser dtype. Padding is left out. Expert indices must be equal as sets.
    """
    if rtol is None:
        kinds = [str(next(m.parameters()).dtype).removeprefix("torch.") for m in (a, b)]
        rtol = max(TOLERANCE.get(k, TOLERANCE["float32"]) for k in kinds)
    left, right = (stages_of(m, input_ids, attention_mask, cached, within) for m in (a, b))
    if within:
        common = [name for name in left if name in right]
        if not common:
            raise PortError(f"within={within!r}: the models have no module in common below it")
        left, right = ({name: side[name] for name in common} for side in (left, right))
    shape = (input_ids.shape[0], 1) if cached else tuple(input_ids.shape)
    mask = None if cached else attention_mask  # a cached step has no padding
    return compare_stages(left, right, mask, shape, rtol, names, in_order=bool(within))


def compare_stages(
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    attention_mask: Tensor | None,
    shape: tuple[int, ...],
    rtol: float,
    names: tuple[str, str] = ("a", "b"),
    *,
    in_order: bool = False,
) -> Report:
    """Two recordings of `stages_of` for the same ids of `shape` [B, S], from whatever processes or
    devices. in_order: rows in the order of `left`, as of modules `within` one."""
    rows = []
    for name in left if in_order else sorted(left.keys() | right.keys(), key=order):
        if name not in left or name not in right:
            only = tr("only in {side}").format(side=told(names[0 if name in left else 1]))
            rows.append(Row(name, "MISSING", detail=only))
            continue
        x, y = (
            _comparable(name, side[name], attention_mask, (shape[0], shape[1]))
            for side in (left, right)
        )
        rows.append(_compare(name, x, y, rtol))
    return Report(rows, rtol, names)


def _comparable(stage: str, value: Tensor, mask: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """The rows of real tokens; padding may hold anything. Accepts [B, S, ...], [B*S, ...] and, of
    logits, [B, 1, V].

    Logits keep three dimensions, because one of two models may have those of the last position
    only.
    """
    batch, length = shape
    if value.shape[:2] != shape and value.shape[0] == batch * length:
        value = value.view(batch, length, *value.shape[1:])
    if mask is None:
        return value
    real = mask.bool().cpu()
    if stage == "lm_head":
        return value.masked_fill(~real[:, -value.shape[1] :].unsqueeze(-1), 0.0)
    return value[real] if value.shape[:2] == real.shape else value


def _compare(name: str, a: Tensor, b: Tensor, rtol: float) -> Row:
    if name == "lm_head" and a.dim() == b.dim() == 3 and a.shape[1] != b.shape[1]:
        a, b = a[:, -1:], b[:, -1:]  # one of them computes the last position only
    if a.shape != b.shape:
        against = tr("{a} against {b}")
        return Row(name, "SHAPE", detail=against.format(a=list(a.shape), b=list(b.shape)))
    if name.endswith(EXPERTS):
        other = (a != b).any(-1)
        count, share = int(other.sum()), float(other.float().mean())
        off = tr("other experts for {count} of {n} tokens").format(count=count, n=other.numel())
        text = off if count else tr("the same experts for every token")
        return Row(name, "DIFF" if count else "OK", float(count), share, text)
    gap = (a - b).abs().max()
    largest = torch.maximum(a.abs().max(), b.abs().max()).clamp(min=1e-30)
    absolute, relative = float(gap), float(gap / largest)
    if not torch.isfinite(gap):
        return Row(name, "DIFF", absolute, relative, tr("not finite"))
    return Row(name, "OK" if relative <= rtol else "DIFF", absolute, relative)
