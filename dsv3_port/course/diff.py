"""Source of the package beside source: a step's upstream form and its ported form."""

from __future__ import annotations

import difflib
import html
import importlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String, Token

from ..errors import PortError
from ..messages import told, tr
from ..steps import change

_INK = (
    (Comment, "comment", "#8a7f3f"),
    (Keyword, "keyword", "#3f8f4f"),
    (String, "string", "#c4604f"),
    (Number, "number", "#3f8f7f"),
    (Name.Builtin, "builtin", "#3f8f4f"),
    (Name.Function, "def", "#4f7fd0"),
    (Name.Class, "def", "#4f7fd0"),
    (Name.Decorator, "meta", "#a06fd0"),
    (Operator, "operator", "#a06fd0"),
)
_BEFORE, _AFTER = (
    "rgba(213,94,0,.17)",
    "rgba(0,114,178,.19)",
)  # Okabe-Ito vermillion and blue: no red against green
_MONO = "font-family:var(--jp-code-font-family,monospace);font-size:12px;line-height:1.45"
FOLD = 'data-fold="judge"'  # on a <details> that pages open
# A phone's page has one column (templates/page): cells in the order of --o, what goes before what comes;
# those that say nothing new are left out
ONCE = "--again:1;"
RULE = "1px solid rgba(128,128,128,.45)"


@dataclass(frozen=True)
class Source:
    """Source text of an object of dsv3_port and where it stands."""

    name: str
    file: str  # relative to the repository
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    def _repr_html_(self) -> str:
        cells = "".join(
            _cell(line, number, "", "")
            for number, line in enumerate(_highlight(self.text), self.line)
        )
        return (
            f'<div style="border:{RULE};border-radius:4px;overflow:hidden;margin:.5em 0">'
            f"{_head(self.name, self.place)}{cells}</div>"
        )

    def _repr_markdown_(self) -> str:
        return f"`{self.place}`\n\n```python\n{self.text}\n```"

    def __repr__(self) -> str:
        return f"# {self.place}\n{self.text}"


@dataclass(frozen=True)
class Beside:
    """One source left, another one right; `label` is read aloud, `heads` stand above them."""

    before: Source
    after: Source
    label: str
    heads: tuple[str, str]
    folded: bool = False  # behind a line to click on; pages show it open

    def pairs(self) -> Iterator[tuple[str, int | None, int | None]]:
        """(kind, line of before, line of after), kind one of equal, change; None where a side has
        no line."""
        a, b = self.before.text.splitlines(), self.after.text.splitlines()
        for tag, a0, a1, b0, b1 in difflib.SequenceMatcher(
            None, a, b, autojunk=False
        ).get_opcodes():
            for k in range(max(a1 - a0, b1 - b0)):
                yield (
                    "equal" if tag == "equal" else "change",
                    a0 + k if a0 + k < a1 else None,
                    b0 + k if b0 + k < b1 else None,
                )

    def _repr_html_(self) -> str:
        left, right = _highlight(self.before.text), _highlight(self.after.text)
        cells, block, last = [], 0, "equal"
        for kind, i, j in self.pairs():
            changed = kind == "change"
            block += kind == "equal" or last == "equal"  # equal lines, or a change's lines together
            last, again = kind, "" if changed else ONCE
            tints = (_BEFORE, _AFTER) if changed else ("", "")
            mine, theirs = f"--o:{2 * block};", again or f"--o:{2 * block + 1};"
            mark = "−" if changed else ""
            cells.append(_side(left, i, self.before.line, mark, tints[0], mine))
            mark = "+" if changed else ""
            cells.append(_side(right, j, self.after.line, mark, tints[1], theirs))
        heads = _head(f"{self.heads[0]}: {self.before.name}", self.before.place) + _head(
            f"{self.heads[1]}: {self.after.name}", self.after.place
        )
        label = html.escape(self.label, quote=True)
        shown = (
            f'<div role="figure" aria-label="{label}" tabindex="0" style="overflow-x:auto;border:{RULE};'
            'border-radius:4px;margin:.5em 0"><div style="--beside:1;display:grid;min-width:44rem;'
            f'grid-template-columns:minmax(0,1fr) minmax(0,1fr)">{heads}{"".join(cells)}</div></div>'
        )
        return (
            f"<details {FOLD}><summary>{label}</summary>{shown}</details>" if self.folded else shown
        )

    def _repr_markdown_(self) -> str:
        return f"```diff\n{self}\n```"

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = difflib.unified_diff(
            self.before.text.splitlines(),
            self.after.text.splitlines(),
            self.before.place,
            self.after.place,
            n=100,
            lineterm="",
        )
        return "\n".join(line for line in lines if not line.startswith("@@"))


def beside(finished: str, yours: str) -> str:
    """HTML: the learner's text beside finished code ('module:attribute'), folded."""
    mine = Source(tr("your function"), tr("this notebook"), 1, yours.rstrip())
    label = tr("Your function beside the finished code")
    shown = Beside(mine, source(finished), label, (tr("yours"), tr("finished")))
    return f"<details><summary>{label}</summary>{shown._repr_html_()}</details>"


def diff(step_id: str, built: object = True) -> Beside:
    """The step's upstream form beside its ported form, as they stand in the package. `built`, a
    judged function (yours.Fitted): folded until that is right."""
    s = change(step_id)
    label = tr("step {number}, {title}: source before and after")
    label = label if s.number else tr("{title}: source before and after")
    return Beside(
        source(s.before),
        source(s.after),
        label.format(number=s.number, title=told(s.title)),
        (tr("before"), tr("after")),
        not built,
    )


def source(what: Any) -> Source:
    """Source of a class or function, or of 'module:attribute' within dsv3_port."""
    if isinstance(what, str):
        module, _, attribute = what.partition(":")
        try:
            found: Any = importlib.import_module(f"dsv3_port.{module}")
            for part in attribute.split(".") if attribute else ():
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise PortError(f"no source for {what!r}: {error}") from error
        what = found
    what = inspect.unwrap(what) if callable(what) else what
    try:
        lines, first = inspect.getsourcelines(what)
        path = Path(inspect.getsourcefile(what) or "")
    except (OSError, TypeError) as error:
        raise PortError(
            f"no source for {what!r}: give a class, a function or a module of dsv3_port"
        ) from error
    root, path = Path(__file__).resolve().parents[2], path.resolve()
    file = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    return Source(
        getattr(what, "__name__", repr(what)),
        file,
        max(first, 1),
        textwrap.dedent("".join(lines)).rstrip(),
    )


def _ink(kind: Any) -> str:
    for token, name, fallback in _INK:
        if kind in token:
            return f"color:var(--jp-mirror-editor-{name}-color,{fallback})"
    return ""


def _highlight(text: str) -> list[str]:
    """Lines of HTML, one for each line of Python source.

    Spaces go into the element of what follows them: nbconvert's pages shrink text that is nothing
    but white space, and with it the indentation.
    """
    lines, space = [""], ""
    for kind, value in PythonLexer(stripnl=False, ensurenl=False).get_tokens(text):
        style = _ink(kind) if kind is not Token.Text else ""
        for k, part in enumerate(value.split("\n")):
            if k:
                lines[-1] += space
                lines.append("")
                space = ""
            if part.isspace():
                space += part
            elif part:
                safe, space = html.escape(space + part), ""
                lines[-1] += f'<span style="{style}">{safe}</span>' if style else safe
    lines[-1] += space
    return lines


def _head(title: str, place: str) -> str:
    return (
        f'<div style="padding:4px 8px;border-bottom:{RULE};background:rgba(128,128,128,.14)"><b>'
        f'{html.escape(title)}</b> <span style="opacity:.75;font-size:12px">{html.escape(place)}</span></div>'
    )


def _side(
    lines: Sequence[str], index: int | None, first: int, mark: str, tint: str, order: str
) -> str:
    if index is None:
        return f'<div style="{ONCE}background:rgba(128,128,128,.08)"></div>'
    return _cell(lines[index], first + index, mark, tint, order)


def _cell(line: str, number: int, mark: str, tint: str, order: str = "") -> str:
    background = f"background:{tint};" if tint else ""
    return (
        f'<div style="{order}{background}{_MONO};display:flex"><span style="flex:none;width:3.2em;text-align:right;'
        f'opacity:.6;user-select:none">{number}</span><span style="flex:none;width:1.3em;text-align:center;'
        f'user-select:none">{mark}</span><span style="white-space:pre-wrap;overflow-wrap:anywhere;min-width:0">'
        f"{line or ' '}</span></div>"
    )
