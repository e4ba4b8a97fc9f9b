"""What a notebook says about itself: title in both languages, claim, card. Index and checks read it
here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

NAME = re.compile(r"(\d\d[a-z]?|a\d)_\w+")  # 02_mla_low_rank, 06a_fixed_cache; a2_… is an appendix
FIELDS = ("Reading", "Exercises", "Run", "Difficulty", "Prerequisites", "Tiers")


@dataclass(frozen=True)
class Notebook:
    """`card` holds the card's rows by their English names; minutes and seconds are their first
    numbers, 0 if none."""

    name: str
    title: str
    title_zh: str = ""
    claim: str = ""
    card: dict[str, str] = field(default_factory=dict)

    @property
    def reading_minutes(self) -> int:
        return _first_number(self.card.get("Reading", ""))

    @property
    def exercise_minutes(self) -> int:
        return _first_number(self.card.get("Exercises", ""))

    @property
    def run_seconds(self) -> int:
        return _first_number(self.card.get("Run", ""))

    @property
    def summary(self) -> str:
        """The claim's first sentence, without markup."""
        return re.split(r"(?<=[.!?])\s|(?<=[。！？])", re.sub(r"[*`]", "", self.claim), maxsplit=1)[
            0
        ]


def course_files(folder: Path) -> list[Path]:
    """The course's notebooks in a folder: numbered ones in order, then the appendices."""
    return sorted(
        (f for f in folder.glob("*.ipynb") if NAME.fullmatch(f.stem)),
        key=lambda f: (f.stem[0] == "a", f.stem),
    )


def _first_number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


def read_notebook(file: Path) -> Notebook:
    """The parts of the anatomy that describe a notebook; the title falls back on the file's name."""
    cells = [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "markdown"]
    heads = [
        line[2:].strip() for c in cells for line in c.source.splitlines() if line.startswith("# ")
    ]
    titled = next((c.source for c in cells if re.search(r"^# ", c.source, re.MULTILINE)), "")
    second = re.search(r"^# .*\n+# (.*)", titled, re.MULTILINE)
    claim = re.search(r"\*\*(?:Claim\.|论点。)\*\*\s+(.*?)(?:\n\n|\Z)", titled, re.DOTALL)
    card = next((c.source for c in cells if "card" in c.metadata.get("tags", [])), "")
    return Notebook(
        file.stem,
        heads[0] if heads else file.stem,
        second[1].strip() if second else "",
        " ".join(claim[1].split()) if claim else "",
        read_card(card),
    )


def read_card(text: str) -> dict[str, str]:
    """Rows of a card's table, `| Reading 阅读 | 20 minutes |`, by their English names."""
    rows = re.findall(r"^\|\s*([A-Za-z]+)[^|]*\|\s*(.*?)\s*\|\s*$", text, re.MULTILINE)
    return dict(rows)
