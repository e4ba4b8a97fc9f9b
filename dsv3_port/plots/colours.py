"""The palette of every picture, safe for colour-blind eyes (Okabe-Ito), and its sizes of text."""

from __future__ import annotations

BLUE, ORANGE, GREEN, SKY, VERMILLION, PURPLE, YELLOW = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#56B4E9",
    "#D55E00",
    "#CC79A7",
    "#F0E442",
)
INK, GREY, LIGHT, PAPER = "#222222", "#6E6E6E", "#D9D9D9", "#FFFFFF"
CYCLE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, YELLOW, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SMALL, NORMAL, LARGE = 11, 12, 14


def ink_on(colour: str) -> str:
    """The text colour to read on a filled area."""
    return "white" if colour in (BLUE, GREEN, VERMILLION, GREY) else INK
