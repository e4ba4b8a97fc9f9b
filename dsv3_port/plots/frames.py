"""Pictures in frames: radio buttons choose one, CSS alone hides the others. No script, no kernel.

Where CSS or buttons are taken away (print, papermill's readers, GitHub, an untrusted notebook) all
frames stand one below the other, each with its caption. Frames are SVG, 340 units wide, so that
their text is legible on a phone.
"""

from __future__ import annotations

import base64
import html
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import PortError
from ..messages import tr
from .colours import INK, PAPER
from .style import _JUPYTER_DARK, CSS_CLASS

WIDTH, TEXT = 340, 12.5  # units; at 360 pixels a unit is about a pixel
MOST = 6  # frames that the style sheet knows
_HIDDEN = ", ".join(
    f".dsv3-frames > input:nth-of-type({k}):checked ~ figure:not(:nth-of-type({k}))"
    for k in range(1, MOST + 1)
)
_CSS = f"""<style>
.dsv3-frames {{ border: 1px solid rgba(128,128,128,.6); border-radius: 6px; padding: 4px 10px 10px; max-width: 620px; }}
.dsv3-frames {{ display: grid; grid-template-columns: auto 1fr; column-gap: .5em; align-items: center; }}
.dsv3-frames > input {{ margin: 0; }}
.dsv3-frames > label {{ padding: .2em 0; cursor: pointer; }}
.dsv3-frames > input:checked + label {{ font-weight: bold; }}
.dsv3-frames > input:focus-visible + label {{ outline: 3px solid #0072B2; outline-offset: 1px; }}
.dsv3-frames > figure {{ grid-column: 1 / -1; margin: .5em 0 0; }}
.dsv3-frames > figure > img {{ display: block; width: 100%; }}
.dsv3-frames > figure > figcaption {{ min-height: 4.5em; }}
@media screen {{ {_HIDDEN} {{ display: none; }} }}
@media print {{ .dsv3-frames > input, .dsv3-frames > label {{ display: none; }} }}
@media (prefers-reduced-motion: no-preference) {{
  @keyframes dsv3-frame {{ from {{ opacity: .2; }} to {{ opacity: 1; }} }}
  .dsv3-frames > figure {{ animation: dsv3-frame .25s ease-out; }}
}}
</style>"""


@dataclass(frozen=True)
class Frame:
    """One picture: the words of its button, its SVG elements and their height, what a screen reader
    says for it, and the line below."""

    label: str
    body: str
    height: float
    alt: str
    caption: str

    @property
    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:g}" width="{WIDTH}" '
            f'height="{self.height:g}" role="img" font-family="DejaVu Sans, Arial, sans-serif" '
            f'font-size="{TEXT}"><title>{html.escape(self.alt)}</title>'
            f'<rect width="100%" height="100%" fill="{PAPER}"/>{self.body}</svg>'
        )


@dataclass(frozen=True)
class Frames:
    """Frames under one title, that of number `shown` first in view. Shown in a notebook they are a
    widget; `str()` is their text."""

    title: str
    frames: Sequence[Frame]
    shown: int = 1

    def __post_init__(self) -> None:
        if not 1 <= len(self.frames) <= MOST:
            raise PortError(f"Frames holds 1 to {MOST} frames, not {len(self.frames)}")
        if not 1 <= self.shown <= len(self.frames):
            raise PortError(f"there are frames 1 to {len(self.frames)} to show, not {self.shown}")

    @property
    def svg(self) -> str:
        """All frames below each other as one SVG."""
        parts, y = [], 0.0
        for frame in self.frames:
            parts.append(frame.svg.replace("<svg ", f'<svg y="{y:g}" ', 1))
            y += frame.height + 12
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:g}" width="{WIDTH}" '
            f'height="{y:g}">{"".join(parts)}</svg>'
        )

    def _repr_html_(self) -> str:
        # notebooks that are open beside each other are one document: names must differ in all
        mine = f"frames-{secrets.token_hex(4)}"
        buttons = "".join(
            f'<input type="radio" name="{mine}" id="{mine}-{k}"{" checked" if k == self.shown else ""}>'
            f'<label for="{mine}-{k}">{html.escape(frame.label)}</label>'
            for k, frame in enumerate(self.frames, 1)
        )
        stop = tr(".")
        figures = "".join(
            f'<figure><img class="{CSS_CLASS}" alt="{html.escape(frame.alt)}" src="data:image/svg+xml;'
            f'base64,{base64.b64encode(frame.svg.encode()).decode()}"><figcaption><b>'
            f"{html.escape(frame.label)}{stop}</b> {html.escape(frame.caption)}</figcaption></figure>"
            for frame in self.frames
        )
        # without the attribute JupyterLab takes the arrow keys for its own
        return (
            f'{_JUPYTER_DARK}{_CSS}<fieldset class="dsv3-frames" data-lm-suppress-shortcuts="true">'
            f"<legend>{html.escape(self.title)}</legend>{buttons}{figures}</fieldset>"
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {
            "text/html": self._repr_html_(),
            "image/svg+xml": self.svg,
            "text/plain": str(self),
        }

    def __str__(self) -> str:
        stop = tr(".")
        lines = [f"{k}. {f.label}{stop} {f.alt} {f.caption}" for k, f in enumerate(self.frames, 1)]
        return "\n".join([self.title, *lines])

    __repr__ = __str__


def tint(colour: str) -> str:
    """A colour thinned with paper, on which ink has contrast on light and on dark pages."""
    parts = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return "#" + "".join(f"{round(255 + 0.3 * (v - 255)):02x}" for v in parts)


def box(x: float, y: float, width: float, height: float, colour: str, text: str = "") -> str:
    """A box with a border of `colour` and a centred text."""
    ground = tint(colour)
    shape = (
        f'<rect x="{x + 0.75:g}" y="{y + 0.75:g}" width="{max(width - 1.5, 1):g}" '
        f'height="{max(height - 1.5, 1):g}" rx="2" fill="{ground}" stroke="{colour}" '
        'stroke-width="1.5"/>'
    )
    middle = (x + width / 2, y + height / 2)
    return shape + (words(*middle, text, "middle", on=ground) if text else "")


def words(
    x: float, y: float, text: str, anchor: str = "start", ink: str = INK, on: str = PAPER
) -> str:
    """A line of text, centred on y, with a rim of the colour that it stands on."""
    return (
        f'<text x="{x:g}" y="{y:g}" dy=".36em" text-anchor="{anchor}" fill="{ink}" stroke="{on}" '
        f'stroke-width="3" paint-order="stroke">{html.escape(text)}</text>'
    )


def line(x0: float, y0: float, x1: float, y1: float, ink: str) -> str:
    """A line with a dot where it arrives."""
    return (
        f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{ink}" stroke-width="2"/>'
        f'<circle cx="{x1:g}" cy="{y1:g}" r="3" fill="{ink}"/>'
    )
