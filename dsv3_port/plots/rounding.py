"""How far a 16-bit result lies from the exact one, in steps of its own number format."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import PortError
from ..messages import told, tr
from .colours import CYCLE, GREY, INK, LIGHT, SMALL
from .style import LabFigure, figure, finish, styled


def rounding_steps(x: Tensor, exact: Tensor) -> Tensor:
    """|x - exact| in units of the distance between neighbouring numbers of x's dtype around `exact`
    (float64).

    A result that is rounded once, to nearest, is never further off than 0.5. Subnormal and zero
    results are left out: the returned tensor is flat and may be shorter than x.
    """
    if exact.dtype != torch.float64 or x.shape != exact.shape:
        raise PortError(
            f"rounding_steps compares x {list(x.shape)} with float64 of the same shape, not {exact.dtype} "
            f"{list(exact.shape)}"
        )
    info = torch.finfo(x.dtype)
    normal = exact.abs() >= info.tiny
    exponent = torch.frexp(exact[normal].abs())[1] - 1  # 2^exponent <= |exact|
    step = info.eps * torch.exp2(exponent.double())
    return (x[normal].double() - exact[normal]).abs() / step


@styled
def rounding_histogram(steps: Mapping[str, Tensor]) -> LabFigure:
    """Share of results by their distance from the exact value (from rounding_steps), one line for
    each form."""
    if not steps:
        raise PortError("rounding_histogram: no results given")
    bins = math.ceil(20 * max(1.0, *(float(s.max()) for s in steps.values())))
    widest = bins / 20  # so that 0.5 is an edge
    edges = torch.linspace(0, widest, bins + 1)
    fig, (ax,) = figure(size=(9.0, 4.0))
    said = []
    for k, (name, values) in enumerate(steps.items()):
        share = torch.histc(values.float(), bins, 0, widest) / values.numel()
        label = tr("{name}: mean {mean:.3f}, largest {most:.2f}").format(
            name=told(name), mean=float(values.mean()), most=float(values.max())
        )
        ax.stairs(
            share.numpy() * 100, edges.numpy(), color=CYCLE[k % 8], lw=2.5, label=label, fill=False
        )
        said.append(label)
    ax.axvline(0.5, color=GREY, ls="--", lw=1.5)
    ax.text(
        0.5 + 0.01 * widest,
        ax.get_ylim()[1] * 0.55,
        tr("one rounding\nstays left of this"),
        fontsize=SMALL,
        color=INK,
    )
    ax.set_xlim(0, widest)
    ax.set_xlabel(tr("distance from the exact value, in steps of the dtype"))
    ax.set_ylabel(tr("share of results, %"))
    ax.grid(color=LIGHT, lw=0.8)
    ax.legend(loc="upper right")
    return finish(fig, tr("Histogram of rounding errors: {said}.").format(said=tr("; ").join(said)))
