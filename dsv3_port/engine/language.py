"""Which language the reader reads: the notebook's own, then DSV3_LANG, then the system's.

A notebook in Chinese says so in its metadata (`dsv3.language`). A kernel learns its notebook from
JupyterLab, which names the file in JPY_SESSION_NAME, as the tutorial does; where nobody does, from its
working folder, which is the notebook's.
"""

from __future__ import annotations

import json
import locale
from collections.abc import Mapping
from pathlib import Path

from .. import messages
from .settings import Settings, environment

SESSION = "JPY_SESSION_NAME"  # jupyter_server sets it for the kernel of a notebook


def system_language(env: Mapping[str, str | None] | None = None) -> str:
    """en or zh, as the system speaks to its user."""
    read = environment if env is None else env.get
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := read(name):
            return "zh" if value.startswith("zh") else "en"
    try:
        found = locale.getlocale()[0] or ""  # Windows has none of these variables
    except ValueError:
        found = ""
    return "zh" if found.lower().startswith(("zh", "chinese")) else "en"


def reader_language() -> str:
    """en or zh: DSV3_LANG, else the system's. PortError for a word that is neither."""
    chosen = environment("DSV3_LANG")
    lang = Settings.from_env_and_flags(environment={"DSV3_LANG": chosen} if chosen else {}).lang
    return system_language() if lang == "auto" else lang


def notebook_language(file: Path) -> str:
    """The language that a notebook names in its metadata; "" if it names none of ours, or is none."""
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))["metadata"]
        name = str(metadata["dsv3"]["language"]).partition("-")[0]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return name if name in messages.LANGUAGES else ""


def settle(folder: Path | None = None) -> None:
    """Put this process's language in force; `folder`: where it runs, if not the working folder."""
    session, here = environment(SESSION), folder or Path.cwd()
    own = notebook_language(Path(session)) if session else ""
    if not session and here.parent.name == "notebooks":
        own = here.name.partition("-")[0]
    messages.use(own if own in messages.LANGUAGES else reader_language())
