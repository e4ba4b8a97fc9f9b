"""Operator schemas as torch writes them: parse one, and judge whether a call still fits another
version of it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    name: str
    type: str
    keyword_only: bool
    default: str | None  # None: must be given


@dataclass(frozen=True)
class Schema:
    arguments: tuple[Argument, ...]
    results: tuple[str, ...]  # types

    @property
    def positional(self) -> list[str]:
        return [a.name for a in self.arguments if not a.keyword_only]

    def __getitem__(self, name: str) -> Argument | None:
        return next((a for a in self.arguments if a.name == name), None)


@dataclass(frozen=True)
class Call:
    """What the package passes somewhere: this many by position, these by name."""

    positional: int
    names: frozenset[str]


def split(text: str) -> list[str]:
    """At the commas outside of brackets and quotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for at, character in enumerate(text):
        if character == '"' or character == "'":
            quoted = not quoted
        elif not quoted:
            depth += (character in "([") - (character in ")]")
            if character == "," and depth == 0:
                parts.append(text[start:at])
                start = at + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip()]


def parse(schema: str) -> Schema:
    """`name(Tensor x, *, int? y=None) -> (Tensor a, Tensor b)`. Alias marks and result names do not
    count."""
    head, _, tail = schema.rpartition("->")
    arguments, keyword_only = [], False
    for part in split(head[head.index("(") + 1 : head.rindex(")")]):
        if part == "*":
            keyword_only = True
            continue
        left, equals, default = part.partition("=")
        kind, name = left.rsplit(" ", 1)
        arguments.append(Argument(name, _plain(kind), keyword_only, default if equals else None))
    tail = tail.strip()
    results = split(tail[1:-1]) if tail.startswith("(") else [tail]
    return Schema(
        tuple(arguments), tuple(_plain(r.split(" ")[0]) for r in results)
    )  # "()": no result


def _plain(kind: str) -> str:
    """Without alias marks; SymInt is an int to a caller."""
    return re.sub(r"\([a-z]!?( ->[^)]*)?\)", "", kind).replace("SymInt", "int")


def judge(ours: str, theirs: str | None, made: list[Call]) -> tuple[str, str]:
    """(same | fits | differs | absent, what is different). `made`: the model's calls; none: every
    argument counts."""
    if theirs is None:
        return "absent", ""
    want, have = parse(ours), parse(theirs)
    if want == have:
        return "same", ""
    whole = Call(len(want.positional), frozenset(a.name for a in want.arguments if a.keyword_only))
    problems = _problems(want, have, made or [whole])
    if problems:
        return "differs", "; ".join(problems)
    new = [a.name for a in have.arguments if want[a.name] is None]
    gone = [a.name for a in want.arguments if have[a.name] is None]
    notes = [f"new: {', '.join(new)}"] if new else []
    notes += [f"not there: {', '.join(gone)}"] if gone else []
    return "fits", "; ".join(notes) or "other defaults of arguments that the model does not pass"


def _problems(want: Schema, have: Schema, made: list[Call]) -> list[str]:
    problems = []
    if want.results != have.results:
        problems.append(f"returns {', '.join(have.results) or 'nothing'}")
    for call in made:
        by_place = want.positional[: call.positional]
        passed = {*by_place, *call.names}
        if not problems and have.positional[: call.positional] != by_place:
            problems.append(f"takes {', '.join(have.positional)} by position")
        for argument in want.arguments:
            other = have[argument.name]
            if argument.name not in passed:
                if (
                    other is not None
                    and other.default != argument.default
                    and argument.default is not None
                ):
                    problems.append(f"{argument.name} defaults to {other.default}")
            elif other is None:
                problems.append(f"no {argument.name}")
            elif other.type != argument.type:
                problems.append(f"{argument.name} is {other.type}")
        problems += [
            f"needs {a.name}" for a in have.arguments if a.default is None and a.name not in passed
        ]
    return list(dict.fromkeys(problems))
