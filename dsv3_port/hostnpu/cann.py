"""Whether CANN is on this machine, and where: beside it the stand-in is neither built nor loaded.
Nothing here imports torch, or starts a process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# where installers put CANN: 8.5 and later, before that
CANN_HOMES = ("/usr/local/Ascend/cann", "/usr/local/Ascend/ascend-toolkit/latest")
# where the dynamic linker looks besides LD_LIBRARY_PATH
LOADER_CACHE = Path("/etc/ld.so.cache")
LOADER_FOLDERS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")


def cann_home() -> str | None:
    """CANN's folder: what its set_env.sh exports, or the place where its installer puts it."""
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        home = os.environ.get(name)
        if home and Path(home).is_dir():
            return home
    return next((home for home in CANN_HOMES if Path(home).is_dir()), None)


def on_loader_path(name: str) -> str | None:
    """Where the dynamic linker finds lib<name>.so. Not ctypes.util.find_library: where there is none,
    as on most machines, that starts ldconfig, the C compiler and ld, one after the other."""
    file = f"lib{name}.so"
    named = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    places = [Path(folder) / file for folder in named if folder]
    with contextlib.suppress(OSError):
        data = LOADER_CACHE.read_bytes()  # paths in it end with a zero byte
        at = data.find(f"/{file}".encode())
        if at >= 0:
            path = data[data.rfind(b"\0", 0, at) + 1 : data.index(b"\0", at)]
            places.append(Path(path.decode(errors="surrogateescape")))
    places += [Path(folder) / file for folder in LOADER_FOLDERS]
    return next((str(p) for p in places if p.exists()), None)


def cann_library(name: str) -> str | None:
    """Where CANN's lib<name>.so is: on the loader's path, or under CANN's folder."""
    found = on_loader_path(name)
    home = cann_home()
    if not found and home:
        found = next(
            (
                str(f)
                for part in ("lib64", "runtime/lib64", "hccl/lib64")
                if (f := Path(home) / part / f"lib{name}.so").exists()
            ),
            None,
        )
    return found


def ascendcl() -> str | None:
    return cann_library("ascendcl")


def installed() -> str | None:
    """Where CANN is, whole or not; beside it the stand-in is neither built nor loaded."""
    return ascendcl() or cann_home()
