"""The picture of tensor parallelism: how each weight matrix is cut over ranks, read from
weights/layout.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ..config import DeepseekV3Config
from ..messages import N_, told, tr
from ..parallel import TensorParallel
from ..plan import PortPlan
from ..weights.layout import targets
from .colours import CYCLE, GREY, LIGHT, SMALL
from .shapes import box
from .style import LabFigure, figure, finish, styled

_WHAT = {
    "embedding": N_("vocabulary"),
    "head": N_("vocabulary"),
    "attention": N_("heads"),
    "dense": N_("width"),
    "experts": N_("width"),
    "shared": N_("width"),
    "gate": "",
}
_ROWS = (("embedding", "head", "attention"), ("dense", "gate"), ("experts", "shared"))
_KIND = {
    "embedding": N_("embedding"),
    "head": N_("output head"),
    "attention": N_("attention"),
    "dense": N_("dense MLP"),
    "gate": N_("router"),
    "experts": N_("expert e"),
    "shared": N_("shared expert"),
}
_CELL = 1.75  # inches for each matrix and its label


@dataclass
class _Matrix:
    """A published matrix [out, in], the dimension it is cut along, and (start, length) of each
    rank."""

    name: str
    component: str
    shape: tuple[int, ...]
    dim: int
    parts: list[tuple[int, int]] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return self.parts[0][1] == self.shape[self.dim]

    @property
    def label(self) -> str:
        short = self.name.removesuffix(".weight").rsplit(".", 1)[-1]
        return f"{told(_KIND[self.component])}\n{short}"

    @property
    def cut(self) -> str:
        if self.whole:
            return tr("not cut")
        form = tr("outputs: {what}") if self.dim == 0 else tr("inputs: {what}")
        return form.format(what=told(_WHAT[self.component]))


def cuts(config: DeepseekV3Config, plan: PortPlan, world_size: int) -> list[_Matrix]:
    """Each kind of matrix once (layers repeat, experts too), with the part of every rank."""
    last = min(config.first_k_dense_replace, config.num_hidden_layers - 1)
    layers, config = {"0", str(last)}, config.replace(num_hidden_layers=last + 1)
    found: dict[tuple[str, str], _Matrix] = {}
    for rank in range(world_size):
        taken = set()
        for target in targets(
            config, plan.plus("tensor_parallel"), TensorParallel(rank, world_size)
        ):
            for p in target.pieces:
                parts = p.source.split(".")
                repeated = parts[1] == "layers" and parts[2] not in layers
                repeated |= "experts" in parts and "0" not in parts[4:]
                key = (target.component, parts[-2])
                if len(p.source_shape) < 2 or repeated or key in taken:
                    continue
                taken.add(key)
                matrix = found.setdefault(
                    key, _Matrix(p.source, target.component, p.source_shape, p.dim)
                )
                matrix.parts.append((p.start, p.length))
    return list(found.values())


@styled
def shard_picture(
    config: DeepseekV3Config, plan: PortPlan | None = None, world_size: int = 8
) -> LabFigure:
    """How each matrix [outputs, inputs] is cut: one colour a rank, light grey where every rank
    holds the whole."""
    matrices = cuts(config, plan or PortPlan.full(), world_size)
    rows = [[m for c in row for m in matrices if m.component == c] for row in _ROWS]
    rows = [r for r in rows if r]
    sizes = [s for m in matrices for s in m.shape]
    low, high = math.log(min(sizes)), math.log(max(sizes))

    def side(size: int) -> float:  # 0.35 to 1.25 inches: to scale the small ones would vanish
        return 0.35 + 0.9 * (math.log(size) - low) / max(high - low, 1e-9)

    across = max(len(r) for r in rows)
    fig, axes = figure(len(rows), 1, (across * _CELL, 0.8 + 2.35 * len(rows)))
    for ax, row in zip(axes, rows, strict=True):
        for k, m in enumerate(row):
            _draw(ax, k * _CELL, side(m.shape[0]), side(m.shape[1]), m)
            text = f"{m.label}\n[{m.shape[0]}, {m.shape[1]}]\n{m.cut}"
            ax.text(k * _CELL, -0.08, text, va="top", fontsize=SMALL)
        ax.set_xlim(-0.05, across * _CELL)
        ax.set_ylim(-0.98, 1.3)
        ax.set_aspect("equal", anchor="W")
        ax.axis("off")
    shown = min(world_size, 8)
    key = [Patch(color=CYCLE[r % 8], label=f"rank {r}") for r in range(shown)]
    if world_size > shown:
        key[-1].set_label(tr("rank {n}, colours repeat").format(n=shown - 1))
    key.append(Patch(facecolor=LIGHT, edgecolor=GREY, hatch="..", label=tr("every rank holds all")))
    fig.legend(handles=key, loc="outside upper center", ncols=5)
    said = "; ".join(f"{' '.join(m.label.split())} {m.cut}" for m in matrices)
    alt = tr("Weight matrices cut over {n} ranks: {said}.").format(n=world_size, said=said)
    note = tr("{n} ranks; [outputs, inputs] of the published matrix; sides on a logarithmic scale")
    return finish(fig, alt, note.format(n=world_size))


def _draw(ax: Axes, x: float, height: float, width: float, m: _Matrix) -> None:
    if m.whole:
        box(ax, x, 0, width, height, LIGHT, edgecolor=GREY, hatch="..", lw=1)
        return
    for rank, (start, length) in enumerate(m.parts):
        a, b = start / m.shape[m.dim], length / m.shape[m.dim]
        place = (
            (x, height * (1 - a - b), width, height * b)
            if m.dim == 0
            else (x + width * a, 0.0, width * b, height)
        )
        text = str(rank) if min(place[2:]) > 0.16 else ""
        box(ax, *place, CYCLE[rank % 8], text, lw=0.8)
