"""Where what ships with the project lies: the embedded model and the recorded results."""

from __future__ import annotations

from pathlib import Path

from .errors import PortError


def repo_root() -> Path:
    """The checkout: the first folder, upwards from here or from the package, that holds
    data/tiny-dsv3."""
    for start in (Path.cwd(), Path(__file__).resolve()):
        for folder in (start, *start.parents):
            if (folder / "data" / "tiny-dsv3" / "config.json").is_file():
                return folder
    raise PortError(
        "data/tiny-dsv3 was not found above this folder: run the notebooks inside a checkout"
    )


def tiny() -> Path:
    """The embedded, trained model in the published checkpoint format."""
    return repo_root() / "data" / "tiny-dsv3"


def recorded_file(name: str) -> Path:
    """A file of what was measured, counted or cited before: data/recorded."""
    return repo_root() / "data" / "recorded" / name
