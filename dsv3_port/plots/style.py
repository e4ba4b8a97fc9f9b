"""One look for every picture: colour-blind safe (Okabe-Ito), readable on a projector, dark on dark
pages.

Figures are made without pyplot, so that nothing is drawn twice in a notebook and no global state is
left behind.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, PngImagePlugin

from ..bench.records import Record
from ..bench.results_table import stamp
from ..errors import PortError
from ..messages import tr, using
from .colours import GREY, INK, LARGE, NORMAL, PAPER, SMALL
from .fonts import drawn_language, settings

P = ParamSpec("P")
# On dark pages the browser turns lightness round and keeps hues: paper becomes #121212, every
# colour of CYCLE has more contrast than on white, and for red-, green- and blue-blind eyes the
# colours stay about as far apart as they were.
CSS_CLASS, ON_DARK = "dsv3-picture", "invert(.94) hue-rotate(180deg) saturate(1.2) brightness(1.15)"
# A phone's page is 360 CSS pixels wide. What has two widths is drawn once more, panels one below the
# other; anything else keeps its smallest text at 11 pixels and scrolls in its own place (pages).
PHONE, PHONE_INCHES, DPI, READABLE = "(max-width: 40rem)", 4.2, 110, 11
_on_phone: ContextVar[bool] = ContextVar("on_phone", default=False)
_JUPYTER_DARK = f'<style>[data-jp-theme-light="false"] .{CSS_CLASS} {{filter: {ON_DARK}}}</style>'

RC: dict[Any, Any] = {
    "font.size": NORMAL,
    "axes.titlesize": LARGE,
    "axes.labelsize": NORMAL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": NORMAL,
    "legend.fontsize": SMALL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "hatch.linewidth": 1.2,
    "axes.axisbelow": True,
    "svg.hashsalt": "dsv3_port",
    "savefig.facecolor": PAPER,
}


class LabFigure(Figure):
    """A Figure that carries its alternative text into the notebook page and the file. `npu_rows`
    and `npu_derived`: what its NPU times rest on (plots/npu_step.py)."""

    alt_text: str = ""
    narrow: Callable[[], LabFigure] | None = None  # the same, for a phone
    npu_rows: tuple[str, ...] = ()
    npu_derived: tuple[Any, ...] = ()
    look: dict[Any, Any]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.look = RC | settings()  # of the language that it is drawn in

    def png(self, dpi: int = DPI) -> bytes:
        """PNG of 128 colours, a third of the size of full colour, with the alternative text as
        Description."""
        raw, small, info = io.BytesIO(), io.BytesIO(), PngImagePlugin.PngInfo()
        with rc_context(self.look):
            self.savefig(raw, format="png", dpi=dpi)
        info.add_itxt("Description", self.alt_text)
        flat = Image.open(raw).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        flat.save(small, format="png", optimize=True, pnginfo=info, dpi=(dpi, dpi))
        return small.getvalue()

    def _repr_mimebundle_(
        self, include: Any = None, exclude: Any = None
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """For Jupyter: an <img> with its alternative text (JupyterLab shows a bare PNG without
        one), beside it what a phone shows, and the PNG."""
        picture = base64.b64encode(self.png()).decode()
        readable = self.bbox.width / self.dpi * READABLE * 72 / SMALL
        tag = (
            f'<img class="{CSS_CLASS}" alt="{html.escape(self.alt_text)}" style="max-width:100%;'
            f'--phone:{readable:.0f}px" src="data:image/png;base64,{picture}">'
        )
        if self.narrow is not None:
            phone = base64.b64encode(self.narrow().png()).decode()
            source = f'<source media="{PHONE}" srcset="data:image/png;base64,{phone}">'
            tag = f"<picture>{source}{tag}</picture>"
        return (
            {"text/html": _JUPYTER_DARK + tag, "image/png": picture, "text/plain": self.alt_text},
            {"image/png": {"alt": self.alt_text}},
        )


def styled(draw: Callable[P, LabFigure]) -> Callable[P, LabFigure]:
    """Within a plot function titles, legends and ticks follow the house style; outside matplotlib
    is untouched."""

    @functools.wraps(draw)
    def call(*args: P.args, **kwargs: P.kwargs) -> LabFigure:
        with using(drawn_language()), rc_context(RC | settings()):
            return draw(*args, **kwargs)

    return call


def two_widths(draw: Callable[P, LabFigure]) -> Callable[P, LabFigure]:
    """`styled`, for a plot that can also be drawn as wide as a phone."""

    @functools.wraps(draw)
    def call(*args: P.args, **kwargs: P.kwargs) -> LabFigure:
        def again() -> LabFigure:
            before = _on_phone.set(True)
            try:
                return styled(draw)(*args, **kwargs)
            finally:
                _on_phone.reset(before)

        fig = styled(draw)(*args, **kwargs)
        fig.narrow = again
        return fig

    return call


def on_phone() -> bool:
    """Whether the figure that is drawn now is a phone's: its panels stand one below the other."""
    return _on_phone.get()


def key(fig: LabFigure, ncols: int, **more: Any) -> None:
    """The legend above all panels, in one column on a phone."""
    fig.legend(loc="outside upper center", ncols=1 if on_phone() else ncols, **more)


def panel_key(ax: Axes, handles: Sequence[Any]) -> None:
    """The legend in an empty corner of a panel; on a phone, where none is, between its title and its
    bars."""
    if on_phone():
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.0))
        ax.set_title(ax.get_title("left"), pad=17 * len(handles) + 12)
    else:
        ax.legend(handles=handles, loc="lower right")


def figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (9.0, 4.0), **grid: Any
) -> tuple[LabFigure, list[Axes]]:
    """An empty figure in the house style and its axes, row by row."""
    if on_phone():  # room for what is broken into lines, and for names above their bars
        size = PHONE_INCHES, 1.4 * size[1] * columns + 0.8
        rows, columns = rows * columns, 1
        grid.pop("width_ratios", None)
    fig = LabFigure(figsize=size, layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False, **grid)
    return fig, list(axes.flat)


# what stays together in a line: a word, or one Chinese character with the marks around it
_HAN, _OPENS, _CLOSES = "\u2e80-\u2fff\u3005-\u9fff", "（「《“", "，。、；：！？）」》”"
_PIECE = re.compile(f" ?[{_OPENS}]*(?:[{_HAN}]|[^ {_HAN}{_OPENS}{_CLOSES}]+)?[{_CLOSES}]*")
_FOLDERS = re.compile("(?<=/)")


def _pieces(text: str) -> list[str]:
    """What `text` may be broken between; a path that fits no phone's line, behind its slashes too."""
    found = _PIECE.findall(" ".join(text.split()))
    return [p for piece in found for p in (_FOLDERS.split(piece) if len(piece) > 36 else [piece])]


def wrapped(fig: LabFigure, text: str, room: float = 0.0, **style: Any) -> str:
    """`text` with line breaks, no line wider than the figure (or than `room` pixels) as this
    matplotlib and font draw it (a count of characters is right for some texts and versions only)."""
    renderer, room = FigureCanvasAgg(fig).get_renderer(), room or 0.98 * fig.bbox.width
    if re.search(
        f"[{_HAN}]", text
    ):  # whose characters are whole pixels wide, more at some sizes than at others
        room *= 0.95
    lines = [""]
    for piece in _pieces(text):
        longer = f"{lines[-1]}{piece}".lstrip()
        drawn = Text(0, 0, longer, figure=fig, **style)
        if lines[-1] and drawn.get_window_extent(renderer).width > room:
            lines.append(piece.lstrip())
        else:
            lines[-1] = longer
    return "\n".join(lines)


def broken(text: str, columns: int) -> list[str]:
    """`text` in lines of so many letters, before there is a figure to measure them in; a Chinese
    character is as wide as two small letters."""
    if not re.search(f"[{_HAN}]", text):
        return textwrap.wrap(text, columns)
    lines, used = [""], 0.0
    for piece in _PIECE.findall(" ".join(text.split())):
        width = sum(1.0 if ord(c) < 0x2E80 else 1.85 for c in piece)
        if lines[-1] and used + width > columns:
            lines, used = [*lines, ""], 0.0
        lines[-1] = f"{lines[-1]}{piece}".lstrip()
        used += width
    return lines


def wrap_titles(fig: LabFigure, axes: Sequence[Axes]) -> None:
    """Break the titles of panels that stand beside each other where the next panel begins."""
    FigureCanvasAgg(fig).draw()  # lays the panels out
    starts = sorted({ax.get_window_extent().x0 for ax in axes})
    for ax in axes:
        here = ax.get_window_extent().x0
        end = next((x for x in starts if x > here + 1), fig.bbox.width)
        style: dict[str, Any] = {"fontsize": LARGE, "fontweight": "bold"}
        lines = ax.get_title("left").split("\n")
        broken = [wrapped(fig, line, 0.96 * (end - here), **style) for line in lines]
        ax.set_title("\n".join(broken), loc="left")


def finish(fig: LabFigure, alt: str, caption: str = "", title: str = "") -> LabFigure:
    """Set the alternative text, a headline, and the small line below that says where the numbers
    come from."""
    if title:
        style: dict[str, Any] = {"fontsize": LARGE, "fontweight": "bold"}
        fig.suptitle(wrapped(fig, title, **style), x=0.01, ha="left", **style)
    if caption:
        style = {"fontsize": SMALL, "color": "#555555"}
        fig.supxlabel(wrapped(fig, caption, **style), x=0.01, ha="left", **style)
    fig.alt_text = " ".join(f"{alt} {caption}".split())
    return fig


def caption(records: Sequence[Record], what: str = "") -> str:
    """Refuse what may not be shown, then: device, sizes, dtype, versions, date."""
    if any(r.tier == "host-npu" for r in records):
        raise PortError(
            "these timings come from the host stand-in for CANN, which says nothing about an NPU's speed: "
            "they are never drawn; measure on device cpu, cuda or a real npu"
        )
    if not records:
        raise PortError("there are no records to draw; measure first")
    parts = [what, stamp(list(records))]
    if any(r.busy for r in records):
        parts.append(tr("MACHINE WAS BUSY, times are not to be trusted"))
    return " · ".join(p for p in parts if p)


def save(fig: LabFigure, path: str | Path) -> Path:
    """Write a PNG or SVG, after its suffix, with the alternative text inside; SVG output is the
    same every time."""
    file = Path(path)
    if file.suffix not in (".png", ".svg"):
        raise PortError(f"{file}: pictures are saved as .png or .svg")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        file.write_bytes(fig.png())
    else:
        with rc_context(fig.look):
            fig.savefig(file, metadata={"Description": fig.alt_text, "Date": None})
    return file
