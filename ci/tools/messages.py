"""Texts that a reader of the course meets, and their Chinese: `python ci/tools/messages.py` (exit code 1
where one is missing).

--update [PO ...] writes dsv3_port/locale/zh.po anew: new texts with an empty translation, or with that of
another file (of a branch that is merged), those that nobody says any more left out; what is translated
stays. Texts come from `tr`, `trn` and `N_` of the package and of its templates, and from data: slots,
exercises, faulty models, steps, and what the code of notebooks shows.
"""

from __future__ import annotations

import ast
import json
import re
import string
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract
from babel.messages.pofile import read_po, write_po

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from notebook_texts import shown_texts

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "dsv3_port"
PO = PACKAGE / "locale" / "zh.po"
KEYWORDS = {"tr": None, "N_": None, "trn": (1, 2)}
METHODS = {".py": "python", ".html": "jinja2.ext:babel_extract", ".j2": "jinja2.ext:babel_extract"}
Found = tuple[str, "str | tuple[str, ...]"]  # place, text; of `trn` both texts
HEAD = """\
# What a reader of the course is told, in Chinese. Words: notebooks/workshop/glossary.md.
# `python ci/tools/messages.py --update` adds what is new.
"""


def said() -> Iterator[Found]:
    """Texts of the package's code and templates."""
    for file in sorted(PACKAGE.rglob("*")):
        if method := METHODS.get(file.suffix):
            place = file.relative_to(PACKAGE).as_posix()
            with file.open("rb") as stream:
                for _, text, _, _ in extract(method, stream, KEYWORDS):
                    yield place, text


def unsaid() -> Iterator[str]:
    """Calls of `tr`, `trn` or `N_` whose text babel does not see, or sees with some Pythons only."""
    for file in sorted(PACKAGE.rglob("*")):
        place = file.relative_to(PACKAGE).as_posix()
        if place == "messages.py":  # which defines them
            continue
        if file.suffix == ".py":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            yield from (f"{place}:{line}: {why}" for line, why in _unseen(tree))
        elif file.suffix in METHODS:
            for at, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if _NO_LITERAL.search(line):
                    yield f"{place}:{at}: {NO_TEXT}"


NO_TEXT = "no text is written there; `told` looks up one that is kept"
_NO_LITERAL = re.compile(r"\b(?:tr|trn|N_)\((?!\s*[\"'])")


def _unseen(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) of a module's calls."""
    inside = {
        id(node) for f in ast.walk(tree) if isinstance(f, ast.JoinedStr) for node in ast.walk(f)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        handed = [a.id for a in node.args if isinstance(a, ast.Name) and a.id in KEYWORDS]
        if handed:
            yield node.lineno, f"{handed[0]} is handed on: {NO_TEXT}"
        if not isinstance(node.func, ast.Name) or node.func.id not in KEYWORDS:
            continue
        texts = node.args[: 2 if node.func.id == "trn" else 1]
        if id(node) in inside:
            yield node.lineno, "it stands in an f-string; say it in a line before"
        elif any(isinstance(a, ast.JoinedStr) for a in texts):
            yield node.lineno, "an f-string; put values in by .format"
        elif not all(isinstance(a, ast.Constant) and isinstance(a.value, str) for a in texts):
            yield node.lineno, NO_TEXT


def data() -> Iterator[Found]:
    """Texts that stand in the course's data."""
    from dsv3_port.check.fault_cases import PARTS, WHYS
    from dsv3_port.check.faults import CASES
    from dsv3_port.course.exercises.aclgraph import CHANGES
    from dsv3_port.course.judge import EXERCISES
    from dsv3_port.course.yours import slots
    from dsv3_port.steps import SECOND, STEPS

    for s in (*STEPS, *SECOND):
        yield from ((f"step {s.id}", text) for text in (s.title, s.stays_equal, s.saves))
    for slot in slots().values():
        place = f"slot {slot.id}"
        texts = [slot.title, *slot.hints, slot.moment, slot.looked, *slot.accepted]
        for name, wrong in slot.wrong.items():
            texts += [name, wrong.hint]
        yield from ((place, text) for text in texts if text)
    for one in EXERCISES.values():
        hints = [*one.wrong, *(hint for _, hint in one.wrong.values())]
        yield from ((f"exercise {one.id}", t) for t in (one.title, one.function, *hints) if t)
    yield from (("exercise 08.what_changed", text) for text in CHANGES)
    for k, case in CASES.items():
        texts = [case.symptom, *case.tools.values(), *case.confirmed]
        yield from ((f"faulty model {k}", text) for text in texts)
    yield from (("faulty models", word) for word in ("layer", "part", "why", *PARTS, *WHYS))


def in_notebooks() -> Iterator[Found]:
    """What the code of notebooks shows."""
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "code":
                tree = ast.parse(re.sub(r"^[%!].*", "", text, flags=re.MULTILINE))
                yield from ((f"code of {file.stem}", said) for said in shown_texts(tree))


def generated() -> Iterator[Found]:
    """Headings of the tables that ci/tools/readme.py writes, and words in them."""
    import table_words
    from page_tables import TABLES

    for name, make in TABLES.items():
        yield from ((f"table {name}", text) for text in table_words.words(name, make()))
    yield from (("tables of pages", word) for word in ("model", "toy", "count"))
    # values of f-strings in notebooks, and names of their models that are one word
    words = [*("the finished code", "replayed", "ill"), "float"]
    words += ["full port", "W8A8, finished code", "W8A8, your code"]
    yield from (("code of notebooks", word) for word in words)
    yield from (("tables of pages", text) for text in table_words.PATTERNS)


def recorded() -> Iterator[Found]:
    """Words of what was measured by others, or by an experiment, and of cards."""
    from dsv3_port.bench.rungs import EXPERIMENTS
    from dsv3_port.forecast.roofline import CARDS
    from dsv3_port.plots.memory import CITED_TEXTS, cited

    for key, entry in cited().items():
        texts = [*(entry[k] for k in CITED_TEXTS), *entry["columns"]]
        yield from ((f"cited {key}", t) for t in (*texts, *(r["label"] for r in entry["rows"])))
    for file in sorted((ROOT / "data" / "recorded").glob(EXPERIMENTS)):
        found = json.loads(file.read_text(encoding="utf-8"))
        yield from ((file.name, found[k]) for k in ("device", "conditions", "profiles"))
    yield from (("cards", text) for c in CARDS.values() for text in (c.name, c.source))


def wanted() -> dict[str, tuple[tuple[str, ...], list[str]]]:
    """Text -> (its forms, places where it is said)."""
    found: dict[str, tuple[tuple[str, ...], list[str]]] = {}
    for place, text in (*said(), *data(), *in_notebooks(), *recorded(), *generated()):
        forms = (text,) if isinstance(text, str) else tuple(text)
        places = found.setdefault(forms[0], (forms, []))[1]
        if place not in places:
            places.append(place)
        if len(forms) > 1:
            found[forms[0]] = (forms, places)
    return found


def read(file: Path | None = None) -> Catalog:
    file = file or PO
    if not file.is_file():
        return Catalog(locale="zh")
    with file.open("rb") as stream:
        return read_po(stream, locale="zh")


def translation(catalog: Catalog, text: str) -> str:
    message = catalog.get(text)
    there = message.string if message is not None else ""
    return there if isinstance(there, str) else there[0] if there else ""


def update(others: Sequence[str] = ()) -> None:
    """others: files whose translations are taken where this one has none."""
    known = [read(), *(read(Path(name)) for name in others)]
    new = Catalog(locale="zh", project="dsv3-port", charset="utf-8", header_comment=HEAD.rstrip())
    for forms, places in wanted().values():
        text = next(filter(None, (translation(c, forms[0]) for c in known)), "")
        several = len(forms) > 1
        new.add(
            forms if several else forms[0],
            (text,) if several else text,
            locations=[(place, None) for place in places],  # type: ignore[misc]  # babel takes no line
        )
    with PO.open("wb") as stream:
        write_po(stream, new, width=110, no_location=False, omit_header=False, sort_output=False)
    text = PO.read_text(encoding="utf-8")
    gone = r'"(?:POT-Creation-Date|PO-Revision-Date|Last-Translator|Language-Team|Generated-By|Report).*\n'
    PO.write_text(re.sub(gone, "", text), encoding="utf-8")


def fields(text: str) -> set[str]:
    """Names of the values that go into a text."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def findings() -> list[str]:
    lines, catalog, due = list(unsaid()), read(), wanted()
    for text, (forms, places) in due.items():
        there = translation(catalog, text)
        short = f"{places[0]}: {text[:70]!r}"
        if not there:
            lines.append(f"{short} has no Chinese")
            continue
        if any(p.endswith((".py", ".html", ".j2")) for p in places) and set().union(
            *map(fields, forms)
        ) != fields(there):
            lines.append(f"{short}: its Chinese puts in other values")
    stale = [
        m.id for m in catalog if m.id and (m.id if isinstance(m.id, str) else m.id[0]) not in due
    ]
    return lines + [f"{str(text)[:70]!r} is said nowhere any more" for text in stale]


def main(argv: Sequence[str]) -> int:
    if "--update" in argv:
        update([word for word in argv if word != "--update"])
    lines = findings()
    for line in lines:
        print(line)
    print(f"{len(wanted())} texts, {len(lines)} findings" + (": --update" if lines else ""))
    return 1 if lines and "--update" not in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
