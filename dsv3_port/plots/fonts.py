"""A font for Chinese in pictures: one of the system's that has every character of the catalogue. Where
there is none a picture keeps English; none ever shows boxes.

Latin letters stay DejaVu's, matplotlib's own, which falls back on the other font for what it has not.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from ..messages import catalogue, language

LATIN = "DejaVu Sans"
# Families as matplotlib names them (of a collection, its first face), the clearest on a screen first.
FAMILIES = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN"),
    *("Noto Sans CJK JP", "Source Han Sans", "Microsoft YaHei", "PingFang SC", "PingFang HK"),
    *("Hiragino Sans GB", "Heiti SC", "Heiti TC", "STHeiti", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Sarasa Gothic SC", "LXGW WenKai", "SimHei", "Droid Sans Fallback"),
    "Arial Unicode MS",
)
# files that hold them: one that was installed after matplotlib made its list is not in that
FILES = (
    "notosanscjk",
    "notosanssc",
    "sourcehansans",
    "wqy-",
    "msyh",
    "simhei",
    "pingfang",
    "stheiti",
)
# a family of one weight draws its regular face where bold is asked for, and says so for each text
logging.getLogger("matplotlib.font_manager").addFilter(
    lambda record: "Failed to find font weight" not in record.getMessage()
)
_FIRST = 0x2E80  # what lies below, DejaVu has


@cache
def chinese_font() -> str:
    """The family of the first that has all characters; "" if none has."""
    known = _listed() or _found()
    return next((name for name in FAMILIES if name in known and _covers(known[name])), "")


def _listed() -> dict[str, str]:
    fonts = font_manager.fontManager.ttflist
    return {font.name: font.fname for font in fonts if font.name in FAMILIES}


def _found() -> dict[str, str]:
    for file in font_manager.findSystemFonts():
        if any(part in Path(file).name.lower() for part in FILES):
            try:
                font_manager.fontManager.addfont(file)
            except (OSError, RuntimeError):  # a damaged file, a kind that FreeType does not read
                continue
    return _listed()


def _covers(file: str) -> bool:
    try:
        there = FT2Font(file).get_charmap()
    except (OSError, RuntimeError):
        return False
    return all(ord(c) in there for c in characters())


@cache
def characters() -> frozenset[str]:
    """Every character of the Chinese catalogue that needs such a font."""
    said = catalogue("zh").messages.values()
    return frozenset(c for text in said for c in text if ord(c) >= _FIRST)


def drawn_language() -> str:
    """zh where the reader's language is that and a font for it is there, else en."""
    return "zh" if language() == "zh" and chinese_font() else "en"


def settings() -> dict[Any, Any]:
    """matplotlib's, for the language that is drawn."""
    return {"font.family": [LATIN, chinese_font()]} if drawn_language() == "zh" else {}
