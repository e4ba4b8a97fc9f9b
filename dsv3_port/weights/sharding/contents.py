"""What the source holds, tensor by tensor: two runs are parts of one job only where they read the
same values, whatever the names and sizes of their files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...errors import PortError
from ..content import Remembered
from .plan import Source


class Contents:
    """The hash of every source tensor: expected, where an earlier run has read it; known, where this
    one has, or where its file has not changed since it was read."""

    def __init__(
        self, output: Path, sources: list[Source], past: Remembered, allow_nonfinite: bool = False
    ) -> None:
        self.output, self.allow_nonfinite, self._past = output, allow_nonfinite, past
        self.known: dict[str, str] = {}
        self.expected: dict[str, str] = {}
        self._files = {s.name: s.file for s in sources}

    def expect(self, contents: dict[str, str], unchanged: Iterable[str] = ()) -> None:
        """What an earlier run read; `unchanged` are those whose files are as they were then."""
        for name, found in contents.items():
            self._compare(name, self.expected.setdefault(name, found), found)
        self.known |= {name: contents[name] for name in unchanged}

    def recall(self) -> None:
        """Take what is remembered of files that have not changed."""
        for name, file in self._files.items():
            found = self.known.get(name) or self._past.hash_of(file, name)
            if found is not None:
                self._set(name, found)

    def add(self, source: Source, found: str) -> None:
        self._set(source.name, found)
        self._past.add(source.file, source.name, found)

    def _set(self, name: str, found: str) -> None:
        self._compare(name, self.expected.get(name, found), found)
        self.known[name] = found

    def _compare(self, name: str, expected: str, found: str) -> None:
        if expected != found:
            raise PortError(
                f"{self._files.get(name, self.output)}: the content of {name} differs from what an earlier "
                f"run read for {self.output}: another checkpoint of the same layout, or a changed "
                "one; take the source of that run, or give an empty folder"
            )
