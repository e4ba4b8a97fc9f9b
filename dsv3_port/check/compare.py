"""Where do two models part? Both run the same tokens; every checkpoint on the way is compared, in
order.

Works between plans of dsv3_port and against transformers' DeepseekV3ForCausalLM, whose modules have
the same names; between devices, dtypes and numbers of ranks through check/sides.py, which records
each side where it runs. A stage is OK, DIFF (above the tolerance), SHAPE (not comparable) or
MISSING (in one model only).
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.graph import eagerly
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..steps import TOLERANCE

_STAGE = re.compile(
    r"model\.embed_tokens|model\.layers\.\d+|model\.layers\.\d+\.mlp\.gate|model\.norm|lm_head"
)
EXPERTS = "mlp.gate"


@dataclass(frozen=True)
class Row:
    """One stage. `max_abs` and `max_rel` compare values; at a gate they are counts and shares of
    tokens instead."""

    stage: str
    status: str  # OK, DIFF, SHAPE, MISSING
    max_abs: float | None = None
    max_rel: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Report:
    rows: list[Row]
    rtol: float
    names: tuple[str, str]

    @property
    def first_divergence(self) -> Row | None:
        """The first stage that is not OK; what comes after it may only have inherited the
        difference."""
        return next((r for r in self.rows if r.status != "OK"), None)

    @property
    def ok(self) -> bool:
        return self.first_divergence is None

    def summary(self) -> str:
        first = self.first_divergence
        if first is None:
            return f"{self.names[0]} and {self.names[1]} agree at all {len(self.rows)} stages (within {self.rtol:.0e})"
        return f"{self.names[0]} and {self.names[1]} part at {first.stage}: {first.status} {first.detail}".rstrip()

    def __str__(self) -> str:
        width = max(len(r.stage) for r in self.rows)
        lines = [f"[{r.status:^7}] {r.stage:<{width}}  {_figures(r)}".rstrip() for r in self.rows]
        return "\n".join([*lines, self.summary()])

    def _repr_html_(self) -> str:
        ink = {"OK": "#009E73", "DIFF": "#D55E00", "SHAPE": "#CC79A7", "MISSING": "#CC79A7"}
        first = self.first_divergence
        rows = "".join(
            f'<tr style="{"outline:2px solid #D55E00" if r is first else ""}"><td style="color:{ink[r.status]};'
            f'font-weight:bold">{r.status}</td><td style="text-align:left"><code>{html.escape(r.stage)}</code></td>'
            f'<td style="text-align:left">{html.escape(_figures(r))}</td></tr>'
            for r in self.rows
        )
        head = "<thead><tr><th></th><th>stage</th><th>difference</th></tr></thead>"
        return (
            f"<table>{head}<tbody>{rows}</tbody></table><p><b>{html.escape(self.summary())}</b></p>"
        )


def _figures(row: Row) -> str:
    if row.detail:
        return row.detail
    return (
        ""
        if row.max_abs is None
        else f"max |Δ| {row.max_abs:.1e}, of the largest value {row.max_rel:.1e}"
    )


def _order(stage: str) -> tuple[int, int, int]:
    parts = stage.split(".")
    if parts[:2] == ["model", "layers"]:  # a layer's gate runs before the layer is done
        return 1, int(parts[2]), 0 if len(parts) > 3 else 1
    return {"model.embed_tokens": 0, "model.norm": 2, "lm_head": 3}[stage], 0, 0


def stages(model: nn.Module) -> list[str]:
    """Names of the modules whose outputs are compared, in the order they run."""
    return sorted((n for n, _ in model.named_modules() if _STAGE.fullmatch(n)), key=_order)


def _stage_output(name: str, output: Any) -> Tensor:
    """What is compared at a stage, from what its module returned in any of the forms."""
    parts = output if isinstance(output, tuple) else (output,)
    tensors = [p for p in parts if isinstance(p, Tensor)]
    if name.endswith(EXPERTS):
        chosen = next((t for t in tensors if not t.is_floating_point()), None)
        if chosen is None:
            raise PortError(
                f"{name} returned no expert indices (shapes {[list(t.shape) for t in tensors]})"
            )
        return chosen.sort(-1)[0]  # topk does not promise an order
    if re.fullmatch(r"model\.layers\.\d+", name) and len(tensors) == 2:
        return (tensors[0] + tensors[1]).float()  # (delta, residual): the stream is their sum
    return tensors[0].float()


def record_stages(model: nn.Module, run: Callable[[], Any]) -> dict[str, Tensor]:
    """Stage -> its output during `run()`, the last call of each; hooks are gone afterwards."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            seen[name] = _stage_output(name, output).detach().cpu()

        return hook

    modules = dict(model.named_modules())
    handles = [modules[n].register_forward_hook(keep(n)) for n in stages(model)]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _forward(model: nn.Module, ids: Tensor, mask: Tensor | None) -> Callable[[], Any]:
    ids = ids.to(next(model.parameters()).device)
    mask = mask.to(ids.device) if mask is not None else None
    if isinstance(model, DeepseekV3):

        def ours() -> None:
            with eagerly(model):  # a compiled step would not call the hooks
                model(ids, mask)

        return ours
    positions = (
        None if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)
    )  # counted from the first token
    return lambda: model(ids, attention_mask=mask, position_ids=positions, use_cache=False)


def _comparable(stage: str, value: Tensor, mask: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """The rows of real tokens; padding may hold anything. Accepts [B, S, ...], [B*S, ...] and, of
    logits, [B, 1, V].

    Logits keep three dimensions, because one of two models may have those of the last position
    only.
    """
    batch, length = shape
    if stage.endswith(EXPERTS) and value.shape[0] == batch * length:
        value = value.view(batch, length, -1)
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
        return Row(name, "SHAPE", detail=f"{list(a.shape)} against {list(b.shape)}")
    if name.endswith(EXPERTS):
        other = (a != b).any(-1)
        count, share = int(other.sum()), float(other.float().mean())
        text = (
            f"other experts for {count} of {other.numel()} tokens"
            if count
            else "the same experts for every token"
        )
        return Row(name, "DIFF" if count else "OK", float(count), share, text)
    gap = (a - b).abs().max()
    largest = torch.maximum(a.abs().max(), b.abs().max()).clamp(min=1e-30)
    absolute, relative = float(gap), float(gap / largest)
    if not torch.isfinite(gap):
        return Row(name, "DIFF", absolute, relative, "not finite")
    return Row(name, "OK" if relative <= rtol else "DIFF", absolute, relative)


def compare_models(
    a: nn.Module,
    b: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    rtol: float | None = None,
    names: tuple[str, str] = ("a", "b"),
) -> Report:
    """Run both on input_ids [B, S] (left-padded where attention_mask is 0) and compare every stage.

    rtol: allowed max |difference| over the largest magnitude; default TOLERANCE of the coarser
    dtype. Padding is left out. Expert indices must be equal as sets.
    """
    if input_ids.dim() != 2:
        raise PortError(f"input_ids must be [batch, sequence], not {list(input_ids.shape)}")
    if rtol is None:
        kinds = [str(next(m.parameters()).dtype).removeprefix("torch.") for m in (a, b)]
        rtol = max(TOLERANCE.get(k, TOLERANCE["float32"]) for k in kinds)
    left, right = (stages_of(m, input_ids, attention_mask) for m in (a, b))
    return compare_stages(left, right, attention_mask, tuple(input_ids.shape), rtol, names)


def stages_of(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Stage -> its output for input_ids [B, S], by the eager step, on the CPU."""
    return record_stages(model, _forward(model, input_ids, attention_mask))


def compare_stages(
    left: Mapping[str, Tensor],
    right: Mapping[str, Tensor],
    attention_mask: Tensor | None,
    shape: tuple[int, ...],
    rtol: float,
    names: tuple[str, str] = ("a", "b"),
) -> Report:
    """Two recordings of `stages_of` for the same ids of `shape` [B, S], from whatever processes or
    devices."""
    rows = []
    for name in sorted(left.keys() | right.keys(), key=_order):
        if name not in left or name not in right:
            rows.append(
                Row(name, "MISSING", detail=f"only in {names[0] if name in left else names[1]}")
            )
            continue
        x, y = (
            _comparable(name, side[name], attention_mask, (shape[0], shape[1]))
            for side in (left, right)
        )
        rows.append(_compare(name, x, y, rtol))
    return Report(rows, rtol, names)
