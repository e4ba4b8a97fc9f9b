"""Files and folders that are complete or not there, also when the machine stops."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from platformdirs import user_log_path

from .errors import PortError

_ERRORS_KEPT = 20  # files
_LFS = b"version https://git-lfs.github.com/spec/"


def lfs_pointer(file: Path) -> str:
    """Whether Git LFS left a pointer in the place of the file, as a sentence about it; else ""."""
    try:
        with file.open("rb") as stream:
            found = stream.read(len(_LFS)) == _LFS
    except OSError:
        return ""
    return (
        f"{file}: is a pointer that Git LFS left, not the file itself; run `git lfs pull` in its folder"
        if found
        else ""
    )


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises PortError, with its name, where it cannot be read, is no JSON,
    gives a key twice or nests too deep."""
    try:
        return json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=once)
    except OSError as error:
        raise PortError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        pointer = lfs_pointer(file)
        raise PortError(pointer or f"{file}: not readable as JSON: {str(error)[:200]}") from error


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key given twice is an error, where json would keep the last one and say
    nothing."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice} is listed twice")
    return made


def write_json(path: Path, value: Any) -> bytes:
    """Sorted keys, one a line; returns what was written."""
    text = (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
    write_atomic(path, text)
    return text


def write_atomic(path: Path, content: bytes | str, mode: int = 0o666) -> None:
    """The whole content under its name, or what stood there before; `mode`, less the umask, is the
    new file's. Raises OSError."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    if path.exists() and not path.is_file():  # /dev/stdout has no name to take
        path.write_bytes(data)
        return
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """New names in a folder survive a power cut only after this."""
    if os.name == "nt":  # folders cannot be opened there
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def keep_traceback(text: str) -> str:
    """Where the stack of an error that nobody foresaw now lies, as the end of a sentence: in the
    user's log folder, else in the folder for temporary files."""
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for find in (lambda: user_log_path("dsv3-port"), lambda: Path(tempfile.gettempdir())):
        try:
            folder = find()
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / name
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "ab") as stream:
                stream.write(text.encode(errors="backslashreplace"))
            for old in sorted(folder.glob("error-*-*.txt"))[:-_ERRORS_KEPT]:
                old.unlink(missing_ok=True)
        except OSError:
            continue
        return f"the full traceback is in {file}"
    return "its traceback could not be written anywhere"


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name (free, or an empty folder's) when the block ends
    without an exception; otherwise nothing stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        if target.exists():
            target.rmdir()
        os.replace(work, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
