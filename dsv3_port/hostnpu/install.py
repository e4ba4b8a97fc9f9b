"""torch_npu in a folder of its own: install it there, and find it again.

With torch_npu in the environment and no CANN, `import torch` and `import transformers` fail. So on
a machine without CANN it goes into a folder beside the environment, which only `hostnpu.enable()`
looks into.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from platformdirs import user_data_path

from ..errors import PortError
from .library import supported_platform
from .trusted import check_owner

FOLDER_VARIABLE = "DSV3_TORCH_NPU_DIR"
VERSION_VARIABLE = "DSV3_TORCH_NPU"  # a release of torch's own version, as 2.14.0 or 2.12.0.post3
NETWORK = (
    "Temporary failure in name resolution",
    "Name or service not known",
    "Failed to establish",
    "Connection refused",
    "Network is unreachable",
    "ConnectTimeout",
    "Read timed out",
    "ProxyError",
)


def torch_version() -> str:
    """The installed torch's, without the build: "2.13.0" for 2.13.0+cpu."""
    try:
        return metadata.version("torch").split("+")[0]
    except metadata.PackageNotFoundError:
        raise PortError(
            "torch is not installed, and torch_npu must have its version: pip install torch==2.13.0"
        ) from None


def wanted_version() -> str:
    """The torch_npu release that belongs to the installed torch: "2.13.0" for torch 2.13.0+cpu, or
    what DSV3_TORCH_NPU names. PortError where that one is for another torch."""
    torch, named = torch_version(), os.environ.get(VERSION_VARIABLE)
    if named and named.split(".post")[0] != torch:
        own = named.split(".post")[0]
        raise PortError(
            f"{VERSION_VARIABLE} is {named}, which is for torch {own}, and torch is {torch}: unset it, or use "
            f"an environment with torch {own} (pip install torch=={own})"
        )
    return named or torch


def _name(version: str) -> str:
    return f"torch-npu-{version}-cp{sys.version_info.major}{sys.version_info.minor}"


def places(version: str) -> list[Path]:
    """Where torch_npu of this version may be, in this order: under the environment, under the
    user's data folder."""
    return [
        Path(sys.prefix) / "share" / "dsv3-port" / _name(version),
        user_data_path("dsv3-port") / _name(version),
    ]


def version_in(folder: Path) -> str | None:
    """The version of the torch_npu in a folder, by its package metadata; None where there is none."""
    for found in metadata.distributions(name="torch-npu", path=[str(folder)]):
        return found.version if (folder / "torch_npu" / "lib").is_dir() else None
    return None


def find() -> Path | None:
    """The folder that holds torch_npu for this torch, or None. PortError if the variable names a
    wrong one."""
    named, wanted = os.environ.get(FOLDER_VARIABLE), wanted_version()
    if named:
        version = version_in(Path(named))
        if version is None:
            raise PortError(
                f"{FOLDER_VARIABLE} is {named}, where no torch_npu is; `dsv3-port hostnpu install` puts it "
                "there if that folder is new or empty"
            )
        for place in (Path(named), Path(named) / "torch_npu", Path(named) / "torch_npu" / "lib"):
            check_owner(place.resolve())
        if version != wanted:
            raise PortError(
                f"{FOLDER_VARIABLE} is {named} with torch_npu {version}, and {wanted} is the one for this torch"
            )
        return Path(named)
    return next((p for p in places(wanted) if version_in(p) == wanted), None)


def _is_free(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return not folder.is_symlink()
    except OSError:
        return False


def _target(version: str) -> Path:
    """The folder that the variable names, or the first place that can be written."""
    named = os.environ.get(FOLDER_VARIABLE)
    for place in [Path(named).absolute()] if named else places(version):
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=place.parent):
                return place
        except OSError:
            continue
    if named:
        raise PortError(
            f"{FOLDER_VARIABLE} is {named}, and {Path(named).absolute().parent} cannot be written"
        )
    raise PortError(
        f"neither {places(version)[0].parent} nor {places(version)[1].parent} can be written: set "
        f"{FOLDER_VARIABLE} to a folder made by pip install --target FOLDER --no-deps torch-npu=={version}"
    )


def install() -> Path:
    """Download torch_npu of torch's version (about 150 MB) into its folder, unless it is there;
    returns the folder.

    Complete or not at all: pip works in a temporary folder beside it, which is renamed at the end.
    """
    reason = supported_platform()
    if reason:
        raise PortError(reason)
    named = os.environ.get(FOLDER_VARIABLE)
    found = None if named and _is_free(Path(named)) else find()
    if found is not None:
        return found
    version = wanted_version()
    if importlib.util.find_spec("pip") is None:
        raise PortError(
            f"this Python has no pip (`{sys.executable} -m ensurepip` adds it); or make a folder elsewhere "
            f"by pip install --target FOLDER --no-deps torch-npu=={version} and set {FOLDER_VARIABLE}"
        )
    target = _target(version)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix="installing-"))
    try:
        _pip(version, work)
        work.chmod(0o755)
        work.rename(target)  # which may be an empty folder
    except OSError as error:
        if version_in(target) != version:  # not another process that was first
            raise PortError(
                f"{target}: cannot be put in place: {error.strerror or error}"
            ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _pip(version: str, folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-input",
        "--disable-pip-version-check",
        "--no-compile",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--target",
        str(folder),
        f"torch-npu=={version}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0 and version_in(folder) == version:
        return
    output = done.stdout + done.stderr
    if any(sign in output for sign in NETWORK):
        reason = "no package index was reached: check the network and proxy, or set PIP_INDEX_URL to a mirror"
    elif "No matching distribution" in output or "Could not find a version" in output:
        reason = (
            f"the package index has no torch-npu {version} for this Python ({sys.version_info.major}."
            f"{sys.version_info.minor}) and machine, or could not be reached"
        )
    elif "No space left" in output:
        reason = "the disk is full"
    else:
        reason = " ".join(output.split())[-300:] or f"exit code {done.returncode}"
    raise PortError(f"torch-npu {version} could not be installed: {reason}")
