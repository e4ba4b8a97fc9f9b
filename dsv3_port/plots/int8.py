"""The pictures of 15: where the two scales of an int8 product stand, and what its rounding costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from torch import Tensor

from ..check.int8_costs import MatrixError
from ..check.quality import Quality
from ..errors import PortError
from ..messages import told, tr
from ..model import int8
from ..weights.int8 import quantize_rows
from .colours import BLUE, GREEN, GREY, INK, LIGHT, NORMAL, ORANGE, SKY, SMALL, VERMILLION
from .shapes import arrow, box, centred, name_rows
from .style import LabFigure, figure, finish, key, on_phone, two_widths, wrap_titles, wrapped

# of the drawing: two tokens and two outputs of four inputs
X = ((0.5, -1.0, 0.25, 2.0), (3.0, -4.0, 1.0, 0.0))
W = ((1.0, -2.0, 0.5, 0.25), (0.1, 0.2, -0.3, 0.4))
_HIGH, _SCALE, _GAP = 0.8, 1.7, 0.25  # of a row; how wide a scale is drawn; before it
_TOP = 3.4  # where the rows of W begin


@two_widths
def scales_outside() -> LabFigure:
    """Left the rows of x and of W as codes, each with its scale; right the sums, and both scales behind
    them. All numbers are computed by the package."""
    x, weight = torch.tensor(X), torch.tensor(W)
    codes, token = int8.quantised(x)
    stored, scale = quantize_rows(weight)
    sums = int8.sums(codes, stored.t(), scale)
    y = int8.linear(x, stored.t(), scale)
    fig, (parts, product) = figure(1, 2, (11.5, 4.4), width_ratios=(1, 1.25))
    _rows(parts, 0.0, x, codes, token, ORANGE, tr("x: a row is a token t"), "s[t]")
    _rows(
        parts,
        _TOP,
        weight,
        stored,
        scale.flatten(),
        GREEN,
        tr("W: a row is an output n"),
        "scale[n]",
    )
    _forbidden(fig, parts)
    parts.set_title(tr("each row: codes and one scale"))
    parts.set_xlim(-0.2, 4 + _GAP + _SCALE + 0.3)
    parts.set_ylim(_TOP + 3.6, -0.9)
    _product(product, sums, y, x @ weight.T)
    product.set_title(tr("sums over k, exact; both scales behind them"))
    wrap_titles(fig, (parts, product))
    for ax in (parts, product):
        ax.axis("off")
    looks = (
        (SKY, tr("int8 codes")),
        (ORANGE, tr("scale of a token")),
        (GREEN, tr("scale of an output")),
        (LIGHT, tr("int32 sums")),
    )
    key(fig, 4, handles=[Patch(facecolor=colour, label=label) for colour, label in looks])
    alt = tr(
        "Left: two rows of x with codes {x} and scales {s}, two rows of W with codes {w} and scales {n}; one "
        "column k is marked: a scale of its own could not leave the sum. Right: the int32 sums {sums}, "
        "multiplied by the scale of each output and the scale of each token, are {y}; in float {exact}."
    ).format(
        x=codes.tolist(),
        s=_listed(token),
        w=stored.tolist(),
        n=_listed(scale.flatten()),
        sums=sums.tolist(),
        y=[_listed(row) for row in y],
        exact=[_listed(row) for row in x @ weight.T],
    )
    note = tr(
        "Drawn, with numbers that this package computes: small above each code the number that it was made of."
    )
    return finish(fig, alt, note)


def _listed(values: Tensor) -> list[str]:
    return [f"{v:.4g}" for v in values.tolist()]


def _rows(
    ax: Axes,
    top: float,
    values: Tensor,
    codes: Tensor,
    scales: Tensor,
    colour: str,
    name: str,
    head: str,
) -> None:
    ax.text(0, top - 0.35, name, fontsize=NORMAL, va="center", fontweight="bold")
    centred(ax, 4 + _GAP + _SCALE / 2, top - 0.35, head, NORMAL, fontweight="bold")
    for r, row in enumerate(codes.tolist()):
        y = top + r * (_HIGH + 0.4) + 0.25
        for k, code in enumerate(row):
            box(ax, k, y, 0.96, _HIGH, SKY, str(code), NORMAL)
            centred(ax, k + 0.48, y - 0.16, f"{float(values[r, k]):g}", SMALL, color=GREY)
        box(ax, 4 + _GAP, y, _SCALE, _HIGH, colour, f"{float(scales[r]):.5f}", NORMAL)


def _forbidden(fig: LabFigure, ax: Axes) -> None:
    """One column k of both: a scale for it would stand inside the sum."""
    look: dict[str, Any] = {"edgecolor": VERMILLION, "facecolor": "none", "lw": 2, "ls": "--"}
    for top in (0.0, _TOP):
        box(ax, 0.97, top - 0.12, 1.0, 2.5, "none", **look)
    said = tr("a scale for each k? it could not leave the sum over k")
    said = wrapped(fig, said, 0.85 * fig.bbox.width / (1 if on_phone() else 2), fontsize=SMALL)
    ax.text(0, _TOP + 2.65, said, fontsize=SMALL, color=VERMILLION, va="top")


def _product(ax: Axes, sums: Tensor, y: Tensor, exact: Tensor) -> None:
    wide, right = 2.0, 6.6  # of a cell; where the result begins
    for n in range(2):
        box(ax, n * wide, 0, 0.95 * wide, _HIGH, GREEN, f"scale[{n}]", NORMAL)
        centred(ax, (n + 0.47) * wide, 1.1, "×", NORMAL, fontweight="bold")
    for r in range(2):
        top = 1.4 + r * 1.6
        centred(ax, 2 * wide + 0.12, top + _HIGH / 2, "×", NORMAL, fontweight="bold")
        box(ax, 2 * wide + 0.35, top, 1.2, _HIGH, ORANGE, f"s[{r}]", NORMAL)
        arrow(ax, (right - 0.9, top + _HIGH / 2), (right - 0.1, top + _HIGH / 2), INK)
        for n in range(2):
            x, look = right + n * wide, {"edgecolor": INK}
            box(ax, n * wide, top, 0.95 * wide, _HIGH, LIGHT, f"{int(sums[r, n]):,}", NORMAL)
            box(ax, x, top, 0.95 * wide, _HIGH, "white", f"{float(y[r, n]):.4f}", NORMAL, **look)
            centred(ax, x + 0.47 * wide, top + 1.05, f"{float(exact[r, n]):.4f}", SMALL, color=GREY)
    below: dict[str, Any] = {"fontsize": SMALL, "color": GREY, "va": "center"}
    ax.text(0, 4.6, tr("Σ codes of x · codes of W, in int32"), **below)
    at = (0, 5.2) if on_phone() else (right, 4.6)
    ax.text(at[0], at[1], tr("result; below it: in float"), **below)
    ax.set_xlim(-0.2, right + 2 * wide + 0.1)
    ax.set_ylim(6.0, -0.6)


@two_widths
def int8_errors(errors: Sequence[MatrixError], costs: Mapping[str, Quality]) -> LabFigure:
    """Above each kind of matrix: the error of its product by int8 weights alone and by int8 inputs alone,
    a dot a layer and their mean as a bar. Below how far the stream is off behind each layer."""
    if not errors or not costs:
        raise PortError("int8_errors: no errors given")
    names = list(dict.fromkeys(e.name for e in errors))
    fig, (bars, stream) = figure(
        2, 1, (9.5, 8.0), gridspec_kw={"height_ratios": (len(names) + 1, 4)}
    )
    said = []
    for y, name in enumerate(names):
        mine = [e for e in errors if e.name == name]
        means = []
        for offset, colour, values in (
            (-0.17, BLUE, [e.weights for e in mine]),
            (0.17, ORANGE, [e.inputs for e in mine]),
        ):
            means.append(100 * fmean(values))
            bars.barh(y + offset, means[-1], 0.3, color=colour)
            bars.plot([100 * v for v in values], [y + offset] * len(values), "o", ms=4, color=INK)
        said.append(f"{name} {means[0]:.2f} / {means[1]:.2f}")
    name_rows(bars, [told(name) for name in names], grid=True)
    bars.set_xlim(0)
    bars.set_xlabel(tr("error of the product, % of its size"))
    bars.set_title(tr("each product alone, on the float model's inputs"))
    lines = stream_errors(stream, costs)
    wrap_titles(fig, (bars, stream))
    key(
        fig,
        2,
        handles=[
            Patch(facecolor=BLUE, label=tr("by int8 weights")),
            Patch(facecolor=ORANGE, label=tr("by int8 inputs, a scale for each token")),
        ],
    )
    alt = tr(
        "Error of each product in per cent, by int8 weights / by int8 inputs, mean of the layers: {bars}. "
        "Error of the stream behind each layer: {lines}."
    ).format(bars="; ".join(said), lines="; ".join(lines))
    positions = next(iter(costs.values())).tokens
    note = tr(
        "Measured in this run on {n} positions: root mean square of the error over that of the values; a dot is "
        "a layer. Embedded model, float beside int8."
    ).format(n=positions)
    return finish(fig, alt, note)


def stream_errors(ax: Axes, costs: Mapping[str, Quality]) -> list[str]:
    """A line for each form: how far the stream is off behind each layer. Returns what the lines say."""
    said, ticks, most = [], list[str](), 0.0
    looks = ((BLUE, "--", "s"), (INK, "-", "o"), (VERMILLION, ":", "^"))
    for (name, q), (colour, line, mark) in zip(costs.items(), looks, strict=False):
        stages = [s for s in q.stages if s.startswith("model.layers.") or s == "model.norm"]
        values = [100 * q.stages[s] for s in stages] + [100 * q.logit_rms]
        ticks = [
            *(tr("layer {n}").format(n=s.rpartition(".")[2]) for s in stages if "layers" in s),
            tr("norm"),
            "logits",
        ]
        ax.plot(
            range(len(values)), values, color=colour, ls=line, marker=mark, lw=2, label=told(name)
        )
        said.append(f"{told(name)}: " + ", ".join(f"{v:.2f}" for v in values))
        most = max(most, *values)
    ax.set_xticks(range(len(ticks)), ticks)
    ax.set_ylim(0, 1.3 * most or 1)
    ax.set_ylabel(tr("off, %"))
    ax.set_title(tr("the whole model: the stream behind each layer"))
    ax.grid(axis="y", color=LIGHT, lw=0.8)
    ax.legend(loc="upper left", ncols=len(costs))
    return said
