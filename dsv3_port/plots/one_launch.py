"""The pictures of 16: where the elements of a matrix lie in FRACTAL_NZ, and which launches of a cached step
become one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from torch import Tensor

from ..check.quality import Quality
from ..count.step_work import StepWork
from ..errors import PortError
from ..hostnpu.formats import to_nz
from ..messages import told, tr
from .colours import BLUE, GREEN, GREY, INK, LIGHT, NORMAL, ORANGE, PURPLE, SKY, SMALL, VERMILLION
from .int8 import stream_errors
from .operators import kind_of
from .shapes import box, centred, name_rows, stack
from .style import LabFigure, figure, finish, key, on_phone, two_widths, wrap_titles, wrapped

K, N, C0 = 20, 40, 32  # of the drawing: both sizes end within a fractal; bytes of a row, int8
MARKED = (17, 33)
_FRACTALS = (SKY, ORANGE, GREEN, PURPLE)


def nz_elements(k: int = K, n: int = N, c0: int = C0) -> Tensor:
    """[fractals, 16, c0]: the memory of an int8 matrix [k, n] in FRACTAL_NZ, each place with the number of
    its element, row * n + column, and -1 where padding lies. By the definition that the host NPU gives its
    tensors."""
    stored = to_nz(torch.arange(1, k * n + 1, dtype=torch.int32).view(k, n), c0)
    return stored.flatten(0, 1) - 1


@two_widths
def nz_picture() -> LabFigure:
    """Left a matrix [K, N] as it is written, right its memory from top to bottom: one fractal of 16 x 32
    bytes after the other, down the columns."""
    memory = nz_elements()
    grid: dict[str, Any] = {"width_ratios": (1.25, 1)}
    if on_phone():
        grid = {"gridspec_kw": {"height_ratios": (1, 2.6)}}
    fig, (matrix, strip) = figure(1, 2, (11.5, 4.6 if on_phone() else 5.6), **grid)
    of_element = torch.full((K * N,), -1)
    for f, fractal in enumerate(memory):
        of_element[fractal[fractal >= 0]] = f
    number = MARKED[0] * N + MARKED[1]
    byte = int((memory.flatten() == number).nonzero())
    _matrix(matrix, of_element.view(K, N))
    _memory(strip, memory, byte)
    matrix.set_title(tr("int8 matrix [K, N] = [{k}, {n}], cut into fractals").format(k=K, n=N))
    strip.set_title(tr("its memory: a line is {n} bytes").format(n=C0))
    wrap_titles(fig, (matrix, strip))
    looks = [
        Patch(facecolor=colour, label=tr("fractal {n}").format(n=f))
        for f, colour in enumerate(_FRACTALS)
    ]
    looks += [
        Patch(facecolor="white", edgecolor=GREY, hatch="///", label=tr("zeros behind K and N")),
        Patch(facecolor=VERMILLION, label=tr("element {at}").format(at=list(MARKED))),
    ]
    key(fig, 6, handles=looks)
    starts = [int(f[f >= 0][0]) for f in memory]
    alt = tr(
        "Left an int8 matrix of {k} rows and {n} columns in {fractals} fractals of 16 by {c0}, whose first "
        "elements are {starts}. Right its {bytes} bytes: the fractals one after the other, first down the "
        "rows, then to the next {c0} columns; {zeros} bytes are zeros. Element {at} lies at byte {byte}."
    ).format(
        k=K,
        n=N,
        fractals=len(memory),
        c0=C0,
        starts=", ".join(f"[{s // N}, {s % N}]" for s in starts),
        bytes=memory.numel(),
        zeros=int((memory < 0).sum()),
        at=list(MARKED),
        byte=byte,
    )
    note = tr(
        "Drawn from the bytes that the host NPU gives such a tensor, and that tests hold to the definition; "
        "nothing is measured."
    )
    return finish(fig, alt, note)


def _matrix(ax: Axes, of_element: Tensor) -> None:
    for f, colour in enumerate(_FRACTALS):
        rows, columns = (of_element == f).nonzero(as_tuple=True)
        top, left = int(rows.min()), int(columns.min())
        high, wide = int(rows.max()) + 1 - top, int(columns.max()) + 1 - left
        box(ax, left, top, wide, high, colour, lw=1.5)
        centred(ax, left + wide / 2, top + high / 2, str(f), NORMAL, fontweight="bold")
    for x in range(N + 1):
        ax.plot((x, x), (0, K), color="white", lw=0.3)
    for y in range(K + 1):
        ax.plot((0, N), (y, y), color="white", lw=0.3)
    _mark(ax, MARKED[1], MARKED[0])
    ax.set_xlim(-0.5, N + 0.5)
    ax.set_ylim(K + 0.5, -0.5)
    ax.set_aspect("equal", anchor="N")
    ax.set_xticks((0, C0, N))
    ax.set_yticks((0, 16, K))
    ax.set_xlabel(tr("column n"))
    ax.set_ylabel(tr("row k"))


def _mark(ax: Axes, x: float, y: float) -> None:
    box(ax, x, y, 1, 1, VERMILLION, edgecolor=INK, lw=0.8, zorder=3)


def _memory(ax: Axes, memory: Tensor, byte: int) -> None:
    fractals, rows, wide = memory.shape
    for f in range(fractals):
        top = f * (rows + 1.5)
        box(ax, 0, top, wide, rows, "white", edgecolor=GREY, hatch="///", lw=0.6)
        for r, row in enumerate(memory[f] >= 0):
            if real := int(row.sum()):
                box(ax, 0, top + r, real, 1, _FRACTALS[f], lw=0.3)
        at = f * rows * wide
        ax.text(
            wide + 0.8,
            top + rows / 2,
            f"{at:,} – {at + rows * wide - 1:,}",
            va="center",
            fontsize=SMALL,
        )
    f, rest = divmod(byte, rows * wide)
    x, y = rest % wide, f * (rows + 1.5) + rest // wide
    _mark(ax, x, y)
    ax.annotate(
        tr("byte {n:,}").format(n=byte),
        (x + 1, y + 0.5),
        (10, y + 6),
        color=VERMILLION,
        fontsize=SMALL,
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        arrowprops={"arrowstyle": "-", "color": VERMILLION},
    )
    ax.set_xlim(-0.5, wide + 17)
    ax.set_ylim(fractals * (rows + 1.5), -0.5)
    ax.axis("off")


# ---- launches ------------------------------------------------------------------------------------

_KINDS = {
    "matrix product": BLUE,
    "NPU operator": GREEN,
    "copy, concatenate, cast": ORANGE,
}
_SHORT = {  # as little as a box can hold
    "aten.mm": "mm",
    "aten.clone": "copy",
    "aten.cat": "cat",
    "aten.constant_pad_nd": "pad",
    "npu_rms_norm": "norm",
    "npu_interleave_rope": "rope",
    "npu_kv_rmsnorm_rope_cache_v2": "norm,\nrope,\ncache",
    "npu_transpose_batchmatmul": "W_UK",
    "npu_mla_prolog_v3": "npu_mla_prolog_v3",
}


def before_scores(before: StepWork, after: StepWork) -> tuple[list[str], list[str]]:
    """Operators of one layer's attention that stand before what both steps share at its end: the scores and
    what follows. PortError where the steps share nothing, or all."""
    rows = [work.layer("attention") for work in (before, after)]
    shared = 0
    for a, b in zip(*map(reversed, rows), strict=False):
        if a != b:
            break
        shared += 1
    if not shared or shared in map(len, rows):
        raise PortError(
            "launches_picture: give cached steps of two plans, with mla_prolog and without it"
        )
    return rows[0][:-shared], rows[1][:-shared]


@two_widths
def launches_picture(before: StepWork, after: StepWork) -> LabFigure:
    """One layer of a cached step: a box for each launch before the scores, in order; above with single
    operators, below with npu_mla_prolog_v3."""
    rows = before_scores(before, after)
    layers = before.config.num_hidden_layers
    across = 6 if on_phone() else len(rows[0])
    lines = -(-len(rows[0]) // across)
    fig, (ax,) = figure(size=(11.5, 3.3 if not on_phone() else 3.6))
    heads = (tr("single operators"), "npu_mla_prolog_v3")
    y = 0.0
    for head, names in zip(heads, rows, strict=True):
        many = tr("{head}: {n} a layer, {all} in {layers} layers")
        text = many.format(head=head, n=len(names), all=len(names) * layers, layers=layers)
        style: dict[str, Any] = {"fontsize": NORMAL, "fontweight": "bold"}
        ax.text(0, y, wrapped(fig, text, 0.95 * fig.bbox.width, **style), va="bottom", **style)
        y += 0.15
        for k, name in enumerate(names):
            line, column = divmod(k, across)
            wide = 2.6 if len(names) == 1 else 1.0
            colour = PURPLE if name == "npu_mla_prolog_v3" else _KINDS.get(kind_of(name), LIGHT)
            short = _SHORT.get(name, name.removeprefix("aten.").removeprefix("npu_"))
            box(ax, column, y + line * 1.1, 0.94 * wide, 1.0, colour, short, SMALL)
        y += 1.1 * (lines if len(names) > 1 else 1) + (1.2 if on_phone() else 0.8)
    ax.set_xlim(-0.05, across + 0.05)
    ax.set_ylim(y - 0.6, -0.7 if on_phone() else -0.5)
    ax.axis("off")
    kinds = dict.fromkeys(kind_of(name) for name in rows[0])
    key(fig, 4, handles=[Patch(facecolor=_KINDS.get(k, LIGHT), label=told(k)) for k in kinds])
    alt = tr(
        "Launches of one layer before its scores: {before}, {n} of them; with npu_mla_prolog_v3 {m}."
    ).format(before=", ".join(rows[0]), n=len(rows[0]), m=len(rows[1]))
    note = tr(
        "Counted in this run: a cached step of the published model, on torch's meta device. A box is a launch; "
        "its width is no time."
    )
    return finish(fig, alt, note)


# ---- the int8 cache ------------------------------------------------------------------------------


@two_widths
def int8_cache(rows: Mapping[str, tuple[int, int]], costs: Mapping[str, Quality]) -> LabFigure:
    """Above bytes of a cached row of one layer, (latent, rotary part) for each form; below how far the
    stream is off behind each layer."""
    if not rows or not costs:
        raise PortError("int8_cache: give the bytes of a row, and what the forms cost")
    fig, (bars, stream) = figure(2, 1, (9.5, 6.2), gridspec_kw={"height_ratios": (1, 2)})
    widest = max(map(sum, rows.values()))
    names = (tr("latent"), tr("rotary part"))
    for y, parts in enumerate(rows.values()):
        bar = [(n, c, str(n)) for n, c in zip(parts, (BLUE, ORANGE), strict=True)]
        end = stack(bars, y, bar, 0.5)
        bars.text(end + 0.01 * widest, y, str(sum(parts)), va="center", fontweight="bold")
    name_rows(bars, [told(name) for name in rows])
    bars.set_xlim(0, 1.12 * widest)
    bars.set_xticks([])
    bars.set_title(tr("bytes of a token in one layer's cache, DeepSeek-V3"))
    lines = stream_errors(stream, costs)
    wrap_titles(fig, (bars, stream))
    looks = zip((BLUE, ORANGE), names, strict=True)
    key(fig, 2, handles=[Patch(facecolor=colour, label=name) for colour, name in looks])
    alt = tr(
        "Bytes of a token and layer: {bytes}. Error of the stream behind each layer, per cent: {lines}."
    ).format(
        bytes="; ".join(f"{told(n)} {sum(p)}" for n, p in rows.items()), lines="; ".join(lines)
    )
    positions = next(iter(costs.values())).tokens
    note = tr(
        "Errors measured in this run on {n} positions, each a step over its cache: root mean square of the "
        "difference to W8A8 without a cache over that of its values. Embedded model."
    ).format(n=positions)
    return finish(fig, alt, note)
