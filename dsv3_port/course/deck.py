"""A written deck, `notebooks/workshop/deck/02.md`, as slides; course/slides.py makes HTML of them.

`---` stands between slides, `???` before a slide's notes. A slide is a heading, some words and at most
one figure, a line of its own:

    cell:ID      the executed output of that cell: its first picture, or its first output
    cell:ID:2    its second output
    code:ID      that cell's source
    build:SLOT   the slot's first lines and its minutes; a countdown in the notes
    gallery:SLOT three usual wrong answers in the model, text beside text

So no number, no code and no outcome is typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .sections import without_marks

_FIGURE = re.compile(r"^(cell|code|build|gallery):([\w.-]+?)(?::(\d+))?$")
_FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
SLIDES, TITLE, WORDS, CODE, WIDTH = (9, 12), 8, 30, 8, 54


@dataclass(frozen=True)
class Figure:
    kind: str  # cell, code, build or gallery
    of: str  # cell's id, or slot's
    output: int = 0  # 0: the first picture


@dataclass(frozen=True)
class Slide:
    title: str
    text: str  # Markdown below the title, without the figure's line
    figures: tuple[Figure, ...]
    notes: str = ""


def deck_of(notebooks_dir: Path, name: str) -> Path:
    """Where the deck of notebook NAME stands, if it has one."""
    return notebooks_dir / "workshop" / "deck" / f"{name.partition('_')[0]}.md"


def read_deck(text: str) -> list[Slide]:
    shown = without_marks(text)
    return [_slide(part) for part in re.split(r"^---\s*$", shown, flags=re.MULTILINE)]


def _slide(part: str) -> Slide:
    shown, _, notes = re.compile(r"^\?\?\?\s*$", re.MULTILINE).sub("\0", part).partition("\0")
    title, figures, rest = "", [], []
    for line in shown.strip().splitlines():
        if not title and (head := re.match(r"#+ (.*)", line)):
            title = head[1].strip()
        elif found := _FIGURE.match(line.strip()):
            figures.append(Figure(found[1], found[2], int(found[3] or 0)))
        else:
            rest.append(line)
    return Slide(title, "\n".join(rest).strip(), tuple(figures), notes.strip())


def words(text: str) -> int:
    """Words of what is read on a slide: code apart, a Chinese character as half a word."""
    plain = re.sub(r"[|*`>#]", " ", _FENCE.sub(" ", text))
    chinese = len(re.findall(r"[\u4e00-\u9fff]", plain))
    return (
        len(re.findall(r"[\w'’.-]*[A-Za-z0-9][\w'’.-]*", re.sub(r"[\u4e00-\u9fff]", " ", plain)))
        + chinese // 2
    )


def problems(
    slides: Sequence[Slide], cells: Mapping[str, str], slot_ids: Sequence[str]
) -> Iterator[str]:
    """What is wrong with a deck. cells: id -> source of the notebook's code cells; slot_ids: its slots."""
    if not SLIDES[0] <= len(slides) <= SLIDES[1]:
        yield f"{len(slides)} slides, {SLIDES[0]} to {SLIDES[1]} are wanted"
    for number, slide in enumerate(slides, 1):
        yield from (f"slide {number}: {text}" for text in _problems(slide, cells, slot_ids))


def _problems(slide: Slide, cells: Mapping[str, str], slot_ids: Sequence[str]) -> Iterator[str]:
    if not slide.title:
        yield "has no title (# …)"
    if (count := words(slide.title)) > TITLE:
        yield f"a title of {count} words, at most {TITLE}"
    if (count := words(slide.text)) > WORDS:
        yield f"{count} words, at most {WORDS}"
    if len(slide.figures) > 1:
        yield f"{len(slide.figures)} figures, at most one"
    code = [block.rstrip("\n") for block in _FENCE.findall(slide.text)]
    for figure in slide.figures:
        known = cells if figure.kind in ("cell", "code") else slot_ids
        if figure.of not in known:
            yield f"{figure.kind}:{figure.of}: the notebook has no such {'slot' if known is slot_ids else 'cell'}"
        elif figure.kind == "code":
            code.append(cells[figure.of])
    for block in code:
        lines = block.splitlines()
        if len(lines) > CODE or max(map(len, lines), default=0) > WIDTH:
            yield f"code of {len(lines)} lines; at most {CODE}, {WIDTH} characters wide"
    if re.search(r"\d[\d.,]*\s?(?:ms|µs|×|%|times)(?!\w)", _FENCE.sub(" ", slide.text)):
        yield "a measured number is typed: take a cell's output"
