"""Texts in two languages, kept in step: `python ci/tools/twins.py` (exit code 1 with findings).

A twin is notebooks/zh-CN/NAME.ipynb, docs/zh-CN/NAME.md, notebooks/workshop/zh-CN/NAME.md,
notebooks/workshop/deck/zh-CN/NN.md or README.zh-CN.md. NAME below is the original's: 00_start_here,
docs/settings.md, README.md.

--new NAME     writes the twin with the English text to be translated; one that is there is brought
               into step: code anew, cells and sections that are missing added, what is translated kept
--stale [NAME] what is to be translated, cell by cell and section by section
--links        points the links of all twins at twins where there are any, else at originals; joins lines
               that break between two Chinese characters
--seal NAME    says that the twin's text was looked at against the original as it is now; refuses
               what is still English
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from twin_files import LANGUAGE, broken_links, called, named, originals, relinked, twin_of
from twin_words import dead_stars, joined, still_english, to_look_at

from dsv3_port.course import sections, translations
from dsv3_port.course.sections import Section, read_sections
from dsv3_port.course.translations import LANGUAGES, fingerprint, is_text, seal_of, text_of

ROOT = Path(__file__).resolve().parents[2]
# what is still to be translated: without a twin, these are no findings; a pattern goes when its last
# twin is there
WAITING = ("notebooks/workshop/deck/*.md",)


# ---- notebooks -----------------------------------------------------------------------------------


def read_notebook(file: Path) -> dict[str, Any]:
    nb: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return nb


def write_notebook(file: Path, nb: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    text = json.dumps(nb, ensure_ascii=False, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def set_seal(cell: dict[str, Any], value: str) -> None:
    own = cell["metadata"].setdefault("dsv3", {})
    own.pop("source", None)
    own |= {"source": value} if value else {}
    if not own:
        del cell["metadata"]["dsv3"]


def new_notebook(file: Path, root: Path) -> None:
    """The twin with the original's cells; what is translated stays, with its seal."""
    nb, twin = read_notebook(file), twin_of(file)
    there = {c["id"]: c for c in read_notebook(twin)["cells"]} if twin.is_file() else {}
    for cell in nb["cells"]:
        old = there.get(cell["id"])
        if old and is_text(cell) and not translations.differences([cell], [old]):
            cell["source"] = old["source"]
            set_seal(cell, seal_of(old))
        elif cell["cell_type"] == "markdown":
            cell["source"] = relinked(text_of(cell), file.parent, twin, root).splitlines(
                keepends=True
            )
    nb["metadata"]["dsv3"] = {"language": LANGUAGE}
    write_notebook(twin, nb)


def seal_notebook(file: Path, root: Path) -> tuple[list[str], list[str]]:
    nb, twin = read_notebook(file), read_notebook(twin_of(file))
    refused = translations.differences(nb["cells"], twin["cells"])
    notes = []
    if not refused:
        for cell, other in zip(nb["cells"], twin["cells"], strict=True):
            if not is_text(cell):
                continue
            where, text = f"cell {cell['id']}", text_of(other)
            if why := still_english(
                relinked(text_of(cell), file.parent, twin_of(file), root),
                text,
                cell["cell_type"] == "code",
            ):
                refused.append(f"{where}: {why}")
                continue
            set_seal(other, fingerprint(text_of(cell)))
            notes += [f"{where}: {note}" for note in to_look_at(text_of(cell), text)]
        write_notebook(twin_of(file), twin)
    return refused, notes


# ---- Markdown ------------------------------------------------------------------------------------


def new_text(file: Path, root: Path) -> list[str]:
    """The twin with the original's sections; returns what it had that the original has not."""
    ours, twin = read_sections(file.read_text(encoding="utf-8")), twin_of(file)
    theirs = read_sections(twin.read_text(encoding="utf-8")) if twin.is_file() else []
    marked = any(s.key in {o.key for o in ours} for s in theirs)
    pairs = difflib.SequenceMatcher(
        None,
        [s.key if marked else str(s.level) for s in ours],
        [s.key if marked else str(s.level) for s in theirs],
        autojunk=False,
    ).get_opcodes()
    made, gone = [], list[str]()
    for kind, a, b, c, d in pairs:
        for at in range(max(b - a, d - c)):
            one = ours[a + at] if a + at < b else None
            old = theirs[c + at] if c + at < d else None
            if one is None:
                gone += [old.text.partition("\n")[0]] if old else []
            elif old is None:
                made.append(replace(one, text=relinked(one.text, file.parent, twin_of(file), root)))
            else:  # a heading that was written anew keeps its place, and is to be looked at
                seal = old.seal if kind == "equal" else ""
                made.append(replace(old, key=one.key, seal=seal))
    write_text(twin, made)
    return gone


def write_text(twin: Path, parts: Sequence[Section]) -> None:
    twin.parent.mkdir(exist_ok=True)
    twin.write_text("".join(s.marked() for s in parts), encoding="utf-8")


def seal_text(file: Path, root: Path) -> tuple[list[str], list[str]]:
    ours, theirs = (read_sections(f.read_text(encoding="utf-8")) for f in (file, twin_of(file)))
    refused, notes = sections.differences(ours, theirs), list[str]()
    if not refused:
        made = []
        for one, other in zip(ours, theirs, strict=True):
            if why := still_english(
                relinked(one.text, file.parent, twin_of(file), root), other.text
            ):
                refused.append(f"section {one.key}: {why}")
                made.append(other)
                continue
            made.append(replace(other, seal=one.source))
            notes += [f"section {one.key}: {n}" for n in to_look_at(one.text, other.text)]
        write_text(twin_of(file), made)
    return refused, notes


# ---- both ----------------------------------------------------------------------------------------


def set_links(file: Path, root: Path) -> None:
    twin = twin_of(file)
    if file.suffix != ".ipynb":
        text = twin.read_text(encoding="utf-8")
        twin.write_text(joined(relinked(text, twin.parent, twin, root)), encoding="utf-8")
        return
    nb = read_notebook(twin)
    for cell in nb["cells"]:
        if cell["cell_type"] == "markdown":
            text = joined(relinked(text_of(cell), twin.parent, twin, root))
            cell["source"] = text.splitlines(keepends=True)
    write_notebook(twin, nb)


def to_do(file: Path) -> list[str]:
    """What of a twin is to be translated or looked at again."""
    twin = twin_of(file)
    if not twin.is_file():
        return ["no twin yet"]
    if file.suffix == ".ipynb":
        a, b = read_notebook(file)["cells"], read_notebook(twin)["cells"]
        sealed = {c["id"]: seal_of(c) for c in b}
        named, kind = translations.stale(a, b), "cell"
    else:
        ours, theirs = (read_sections(f.read_text(encoding="utf-8")) for f in (file, twin))
        sealed = {s.key: s.seal for s in theirs}
        named, kind = sections.stale(ours, theirs), "section"
    return [
        f"{kind} {name}: " + ("the original changed" if sealed[name] else "not translated yet")
        for name in named
    ]


def findings(file: Path, root: Path) -> list[str]:
    """Everything that is wrong with a file's twin."""
    twin = twin_of(file)
    if not twin.is_file():
        waits = any(file in root.glob(pattern) for pattern in WAITING)
        return [] if waits else ["no twin yet: --new writes one"]
    if file.suffix == ".ipynb":
        nb, other = read_notebook(file), read_notebook(twin)
        found = translations.differences(nb["cells"], other["cells"])
        if other["metadata"].get("dsv3", {}).get("language") != LANGUAGE:
            found.append(f"metadata.dsv3.language is not {LANGUAGE!r}")
        found += [
            f"cell {c['id']}: holds outputs; strip them"
            for c in other["cells"]
            if c.get("outputs") or c.get("execution_count") is not None
        ]
        texts = {
            f"cell {c['id']}": text_of(c) for c in other["cells"] if c["cell_type"] == "markdown"
        }
    else:
        written = twin.read_text(encoding="utf-8")
        ours, theirs = (read_sections(t) for t in (file.read_text(encoding="utf-8"), written))
        found = sections.differences(ours, theirs)
        texts = {f"section {s.key}": s.text for s in theirs}
    found += [
        f"{place}: stars stay stars, a space or other words there: …{near}…"
        for place, text in texts.items()
        for near in dead_stars(text)
    ]
    found += [
        f"{place}: a line breaks between two Chinese characters, which a page shows as a space; --links "
        "joins them"
        for place, text in texts.items()
        if joined(text) != text
    ]
    return [*found, *to_do(file), *broken_links(twin, "\n".join(texts.values()), root)]


def strays(root: Path) -> list[str]:
    """Twins of nothing."""
    places = {twin_of(file).parent for file in originals(root)} - {root}
    awaited = {twin_of(file) for file in originals(root)}
    return [
        f"{file.relative_to(root).as_posix()}: there is no such original"
        for place in sorted(places)
        for file in sorted([*place.glob("*.ipynb"), *place.glob("*.md")])
        if file not in awaited
    ]


def main(argv: Sequence[str], root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    for word in ("--new", "--stale", "--links", "--seal"):
        what.add_argument(word, action="store_true")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args(argv)
    files = [named(root, n) for n in args.names] or originals(root)
    if (args.new or args.seal) and not args.names:
        parser.error("name a notebook or a text")
    if args.links:
        for file in (f for f in files if twin_of(f).is_file()):
            set_links(file, root)
        return 0
    lines: list[str] = []
    for file in files:
        name, notes = called(root, file), list[str]()
        if args.new:
            gone = (new_notebook if file.suffix == ".ipynb" else new_text)(file, root)
            notes = [f"left out, the original has it no more: {text}" for text in gone or []]
            print(f"{twin_of(file).relative_to(root)}: {len(to_do(file))} to translate")
        elif args.seal:
            found, notes = (seal_notebook if file.suffix == ".ipynb" else seal_text)(file, root)
            lines += [f"{name}: {text}" for text in found]
        else:
            found = to_do(file) if args.stale else findings(file, root)
            lines += [f"{name}: {text}" for text in found]
        for note in notes:
            print(f"look: {name}: {note}")
    if not (args.new or args.stale or args.seal or args.names):
        lines += strays(root)
    for line in lines:
        print(line)
    if not (args.new or args.seal):
        print(
            f"{sum(twin_of(f).is_file() for f in files)} of {len(files)} twins ({LANGUAGES[LANGUAGE]}), "
            f"{len(lines)} {'to do' if args.stale else 'findings'}"
        )
    return 1 if lines and not args.stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
