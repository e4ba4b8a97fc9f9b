"""Where the parameters lie: of what a model stores, and of what one token is multiplied with."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.patches import Patch

from ..config import DeepseekV3Config
from ..forecast.anatomy import component_params, count_text
from ..messages import N_, told, tr
from .colours import BLUE, GREEN, GREY, NORMAL, ORANGE, PURPLE, SKY, VERMILLION, YELLOW
from .shapes import stack
from .style import LabFigure, figure, finish, styled

_COLOURS = {
    "experts": BLUE,
    "attention": ORANGE,
    "shared": GREEN,
    "dense": YELLOW,
    "embedding": SKY,
    "head": PURPLE,
    "gate": VERMILLION,
    "norm": GREY,
}
_SAID = (
    *(N_("routed experts"), N_("attention"), N_("shared expert"), N_("dense"), N_("embedding")),
    *(N_("head"), N_("gate"), N_("norm")),
)
_NAMES = dict(zip(_COLOURS, _SAID, strict=True))


@styled
def parameter_picture(configs: Mapping[str, DeepseekV3Config]) -> LabFigure:
    """For each model two bars to 100 %: the parameters it stores, and those that one token is
    multiplied with."""
    fig, (ax,) = figure(size=(10.5, 1.9 + 1.0 * len(configs)))
    labels, said, y = [], [], 0.0
    for name, config in configs.items():
        parts = component_params(config)
        for which, what in ((0, tr("stored")), (1, tr("used by one token"))):
            total = sum(counts[which] for counts in parts.values())
            bar, shares = [], []
            for component, colour in _COLOURS.items():
                share = parts.get(component, (0, 0))[which] / total
                large = share > 0.045
                bar.append((share, colour, f"{share:.0%}" if large else ""))
                if large:
                    shares.append(f"{told(component)} {share:.0%}")
            stack(ax, y, bar, 0.8)
            ax.text(1.01, y, count_text(total), va="center", fontsize=NORMAL, fontweight="bold")
            labels.append((y, f"{name}\n{what}"))
            row = tr("{name} {what} {count}: {shares}")
            parts_said = tr(", ").join(shares)
            said.append(
                row.format(name=name, what=what, count=count_text(total), shares=parts_said)
            )
            y += 0.95
        y += 0.45
    ax.set_yticks([at for at, _ in labels], [text for _, text in labels])
    ax.set_ylim(y - 0.75, -0.6)
    ax.set_xlim(0, 1.12)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    fig.legend(
        handles=[Patch(color=c, label=told(_NAMES[n])) for n, c in _COLOURS.items()],
        loc="outside upper center",
        ncols=8,
        columnspacing=1.0,
        handlelength=1.2,
    )
    alt = tr("Stacked bars of parameters by component: {said}.")
    return finish(fig, alt.format(said=tr("; ").join(said)))
