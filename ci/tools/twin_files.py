"""Which files have a twin in another language, where it lies, and where its links lead."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

LANGUAGE = "zh-CN"
MARKDOWN = ("README.md", "docs/*.md", "notebooks/workshop/*.md", "notebooks/workshop/deck/*.md")
_LINK = re.compile(r"(\]\(\s*<?|<img[^>]+src=[\"'])([^)\s>\"']+)")


def originals(root: Path) -> list[Path]:
    """Every file that has a twin, or is to have one."""
    texts = [f for pattern in MARKDOWN for f in sorted(root.glob(pattern))]
    return [*sorted((root / "notebooks").glob("*.ipynb")), *texts]


def twin_of(file: Path) -> Path:
    if file.name == "README.md":
        return file.with_name(f"README.{LANGUAGE}.md")
    return file.parent / LANGUAGE / file.name


def named(root: Path, name: str) -> Path:
    """An original by its path or, for a notebook, by its name."""
    for file in (root / name, root / "notebooks" / f"{name.removesuffix('.ipynb')}.ipynb"):
        if file in originals(root):
            return file
    raise SystemExit(f"{name}: no notebook and no text that has a twin")


def called(root: Path, file: Path) -> str:
    path = file.relative_to(root).as_posix()
    return file.stem if file.suffix == ".ipynb" else path


def relinked(text: str, place: Path, twin: Path, root: Path) -> str:
    """A text whose links are relative to `place`, for the file `twin`: they lead to twins where there
    are any, else to originals."""

    def link(found: re.Match[str]) -> str:
        url, at, anchor = found[2].partition("#")
        if not is_local(url):
            return found[0]
        target = aim((place / url).resolve(), twin, root)
        url = Path(os.path.relpath(target, twin.parent.resolve())).as_posix()
        return f"{found[1]}{url}{at}{anchor}"

    return _LINK.sub(link, text)


def aim(target: Path, twin: Path, root: Path) -> Path:
    """Where a link of `twin` to `target` is to lead; its own original stays what it is."""
    for file in originals(root):
        other = twin_of(file)
        if target in (file.resolve(), other.resolve()) and other.resolve() != twin.resolve():
            return other.resolve() if other.is_file() else file.resolve()
    return target


def is_local(url: str) -> bool:
    return bool(url) and "://" not in url and not url.startswith(("mailto:", "data:"))


def broken_links(twin: Path, text: str, root: Path) -> Iterator[str]:
    """Links of a twin that lead to nothing, or to another file than they should."""
    for url in dict.fromkeys(url.partition("#")[0] for _, url in _LINK.findall(text)):
        if not is_local(url):
            continue
        target = (twin.parent / url).resolve()
        right = aim(target, twin, root)
        if target != right:
            to = Path(os.path.relpath(right, twin.parent.resolve())).as_posix()
            yield f"leads to {url} instead of {to}; --links sets it right"
        elif not target.exists():
            yield f"leads to {url}, which does not exist"
