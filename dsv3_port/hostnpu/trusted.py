"""Compiled code is loaded only where nobody else could have put it: from a folder of this user that
others cannot write to, and only as it was compiled."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from ..errors import PortError

SUMS = "SHA256SUMS"  # as sha256sum writes and checks it
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def seal(folder: Path) -> None:
    """Nobody else may write here, whatever the umask is; and what is here now is what is loaded
    later."""
    lines = []
    for file in sorted(folder.iterdir()):
        file.chmod(0o755 if file.suffix == ".so" else 0o644)
        lines.append(f"{_digest(file)}  {file.name}\n")
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    (folder / SUMS).chmod(0o644)
    folder.chmod(0o755)


def check(folder: Path) -> None:
    """Before anything in a sealed folder is loaded. PortError where somebody else could have
    written it, or something in it is not what was sealed."""
    check_owner(folder.parent)
    check_owner(folder)
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
        sums = {name: digest for digest, _, name in (x.partition("  ") for x in text.splitlines())}
        for file in sorted(folder.iterdir()):
            check_owner(file)
            if file.name != SUMS and sums.pop(file.name, "") != _digest(file):
                raise PortError(f"{file}: is not what was compiled there; delete {folder}")
    except (OSError, ValueError) as error:
        raise PortError(f"{folder}: cannot be checked ({error}); delete it") from error
    if sums:
        raise PortError(f"{folder / min(sums)}: is missing; delete {folder}")


def check_owner(path: Path) -> None:
    """PortError where another user owns it, others may write to it, or it is a link."""
    if not hasattr(os, "geteuid"):
        return
    try:
        found = path.lstat()
    except OSError as error:
        raise PortError(f"{path}: cannot be looked at: {error.strerror}") from error
    if stat.S_ISLNK(found.st_mode) and path.exists():
        raise PortError(f"{path}: is a link; code is loaded from the place itself only")
    if found.st_uid not in (os.geteuid(), 0):
        raise PortError(
            f"{path}: belongs to user {found.st_uid}, and code from it would run as user {os.geteuid()}; "
            "DSV3_HOSTNPU_CACHE may name a folder of your own"
        )
    if found.st_mode & _OTHERS and not found.st_mode & stat.S_ISVTX:
        raise PortError(
            f"{path}: others may write to it (mode {stat.S_IMODE(found.st_mode):o}), and code from it would "
            f"run here; take that away (chmod go-w) and delete what is in it, or let DSV3_HOSTNPU_CACHE "
            "name another folder"
        )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
