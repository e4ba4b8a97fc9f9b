"""Where what ships with the project lies: notebooks, the embedded model, recorded results. In a
checkout, in a folder that `dsv3-port start` made of the installed package, or in that package."""

from __future__ import annotations

from pathlib import Path

from .errors import PortError

SHIPPED = Path(__file__).parent / "shipped"  # setup.py fills it in a wheel; a checkout has none


def course_root() -> Path | None:
    """The first folder, upwards from here or from the package, that holds data/tiny-dsv3."""
    for start in (Path.cwd(), Path(__file__).resolve()):
        for folder in (start, *start.parents):
            if (folder / "data" / "tiny-dsv3" / "config.json").is_file():
                return folder
    return None


def repo_root() -> Path:
    """The folder that notebooks run in and write to: a checkout, or a started one."""
    root = course_root()
    if root is None:
        raise PortError(
            "data/tiny-dsv3 was not found above this folder: call again inside a checkout, or "
            "inside a folder made by `dsv3-port start FOLDER`"
        )
    return root


def data(name: str) -> Path:
    """A file or folder of data/, to read."""
    for root in (course_root(), SHIPPED):
        if root and (root / "data" / name).exists():
            return root / "data" / name
    raise PortError(f"data/{name} is missing: reinstall dsv3-port, or call again inside a checkout")


def tiny() -> Path:
    """The embedded, trained model in the published checkpoint format."""
    return data("tiny-dsv3")


def recorded_file(name: str) -> Path:
    """A file of what was measured, counted or cited before: data/recorded."""
    return data(f"recorded/{name}")
