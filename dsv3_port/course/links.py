"""Where links of a notebook, or of a text, lead in its page."""

from __future__ import annotations

import base64
import mimetypes
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .translations import LANGUAGES


def page_link(url: str, folder: Path, pages_dir: Path) -> str:
    """A link of a notebook or text in `folder` as it must read in its page: notebooks and texts beside
    it, of either language, become their pages (NAME.html, NAME.zh-CN.html), other files are named
    relative to the page."""
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or not parts.path:
        return url
    file = Path(os.path.normpath(folder / unquote(parts.path)))
    home = folder.parent if folder.name in LANGUAGES else folder
    if file.suffix in (".ipynb", ".md") and home in (file.parent, file.parent.parent):
        language = "" if file.parent == home else file.parent.name
        if not language or language in LANGUAGES:
            return parts._replace(path=page_name(file.stem, language)).geturl()
    return parts._replace(path=Path(os.path.relpath(file, pages_dir)).as_posix()).geturl()


def page_name(stem: str, language: str = "") -> str:
    return f"{stem}.{language}.html" if language in LANGUAGES else f"{stem}.html"


def embedded(url: str, folder: Path) -> str:
    """A local picture as a data: URL; anything else as it was."""
    file = folder / unquote(url)
    if urlsplit(url).scheme or not file.is_file():
        return url
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
