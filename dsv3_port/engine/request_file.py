"""A file of prompts to serve: plain text, one a line; JSON, a list as in data/prompts.json; or JSON
Lines, one value a line, which may say more than the prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PortError
from ..files import lfs_pointer, once, read_json
from .chat import check_messages
from .tokenizer import Prompt

FIELDS = ("prompt", "messages", "max_new_tokens", "seed")


@dataclass(frozen=True)
class Asked:
    """One prompt of a file. place: "prompts.txt, line 3", for errors; None: as the run says."""

    place: str
    prompt: Prompt
    max_new_tokens: int | None = None
    seed: int | None = None


def read_requests(path: str | Path, chat: bool = False) -> tuple[Asked, ...]:
    """What a file asks for, in its order. Its form is its name's end: .json, .jsonl, anything else is
    text, whose empty lines are left out. A value is a text, a list of chat messages, or an object
    with `prompt` or `messages`, and where wanted max_new_tokens and seed. chat: which list a .json
    with both has ("chat", else "completion").

    PortError names file and line (of a .json: the prompt's number)."""
    file = Path(path)
    form = {".json": _json, ".jsonl": _json_lines}.get(file.suffix.lower(), _text)
    found = tuple(form(file, chat))
    if not found:
        raise PortError(f"{file}: holds no prompt; one a line is wanted, or a JSON list of them")
    return found


def _text(file: Path, chat: bool) -> Iterator[Asked]:
    for place, line in _lines(file):
        yield Asked(place, line)


def _json_lines(file: Path, chat: bool) -> Iterator[Asked]:
    for place, line in _lines(file):
        try:
            value = json.loads(line, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise PortError(f"{place}: not readable as JSON: {str(error)[:200]}") from error
        yield _asked(place, value)


def _json(file: Path, chat: bool) -> Iterator[Asked]:
    found = read_json(file)
    if isinstance(found, dict):
        found = found.get("chat" if chat else "completion")
    if not isinstance(found, list):
        raise PortError(
            f"{file}: must hold a list of prompts, or an object with such lists as 'completion' and 'chat'"
        )
    for number, value in enumerate(found, 1):
        yield _asked(f"{file}, prompt {number}", value)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of lines that are not empty; as editors count them, from 1."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise PortError(f"{file}: cannot be read: {error.strerror or error}") from error
    if pointer := lfs_pointer(file):
        raise PortError(pointer)
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        place = f"{file}, line {number}"
        try:
            line = raw.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise PortError(f"{place}: not UTF-8 at byte {error.start + 1}") from None
        if line.strip():
            yield place, line


def _asked(place: str, value: Any) -> Asked:
    if isinstance(value, (str, list)):
        return Asked(place, _prompt(place, value))
    if not isinstance(value, dict):
        raise PortError(
            f"{place}: is {str(value)[:40]!r}, not a text, a list of chat messages or an object"
        )
    if odd := [key for key in value if key not in FIELDS]:
        raise PortError(f"{place}: unknown field {odd[0][:60]!r}; known are {', '.join(FIELDS)}")
    given = [key for key in ("prompt", "messages") if key in value]
    if len(given) != 1:
        raise PortError(f"{place}: must have a prompt or messages, and has {len(given)} of them")
    prompt = value[given[0]]
    if isinstance(prompt, str) != (given[0] == "prompt"):
        wanted = "a text" if given[0] == "prompt" else "a list of chat messages"
        raise PortError(f"{place}: {given[0]} is {str(prompt)[:40]!r}, not {wanted}")
    new, seed = value.get("max_new_tokens"), value.get("seed")
    if new is not None and (type(new) is not int or not 1 <= new < 1 << 31):
        raise PortError(f"{place}: max_new_tokens must be a whole number above 0, not {new!r:.40}")
    if seed is not None and type(seed) is not int:
        raise PortError(f"{place}: seed must be a whole number, not {seed!r:.40}")
    return Asked(place, _prompt(place, prompt), new, seed)


def _prompt(place: str, prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    try:
        return check_messages(prompt)
    except PortError as error:
        raise PortError(f"{place}: {error}") from None
