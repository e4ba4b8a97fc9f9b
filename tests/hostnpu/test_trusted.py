"""Code from a folder that others may write to, or that was changed there, is never loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dsv3_port.errors import PortError
from dsv3_port.hostnpu import library, trusted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache with one sealed library."""

    def make(work: Path) -> None:
        (work / "libx.so").write_text("code")
        (work / "x.c").write_text("source")

    previous = os.umask(0o002)
    try:
        found = library.once(tmp_path / "cache" / "one", make)
    finally:
        os.umask(previous)
    return found


def again(folder: Path) -> Path:
    return library.once(folder, lambda work: pytest.fail("made twice"))


def test_as_it_was_made(folder: Path) -> None:
    assert again(folder) == folder
    assert folder.stat().st_mode & 0o7777 == 0o755
    assert (folder / "libx.so").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("place", ["", "..", "libx.so", "x.c", "SHA256SUMS"])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_others_may_write(place: str, mode: int, folder: Path) -> None:
    (folder / place).resolve().chmod(mode)
    with pytest.raises(PortError, match=f"others may write to it .mode {mode:o}"):
        again(folder)


def test_a_shared_folder_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PortError, match="others may write"):
        library.once(tmp_path / "open" / "one", lambda work: pytest.fail("compiled there"))
    (tmp_path / "open").chmod(0o1777)  # /tmp: names there are their owners'
    library.once(tmp_path / "open" / "one", lambda work: None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_user(folder: Path) -> None:
    os.chown(folder / "libx.so", 4321, -1)
    with pytest.raises(PortError, match="belongs to user 4321"):
        again(folder)


def test_exchanged_added_gone_and_linked(folder: Path) -> None:
    kept = (folder / "libx.so").read_bytes()
    (folder / "libx.so").write_text("evil")
    with pytest.raises(PortError, match="libx.so: is not what was compiled there"):
        again(folder)
    (folder / "libx.so").write_bytes(kept)
    (folder / "more.so").write_text("evil")
    (folder / "more.so").chmod(0o644)
    with pytest.raises(PortError, match="more.so: is not what was compiled"):
        again(folder)
    (folder / "more.so").unlink()
    (folder / "libx.so").rename(folder.parent / "libx.so")
    with pytest.raises(PortError, match="libx.so: is missing"):
        again(folder)
    (folder / "libx.so").symlink_to(folder.parent / "libx.so")
    with pytest.raises(PortError, match="is a link"):
        again(folder)
    (folder / "libx.so").unlink()
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(PortError, match="cannot be checked"):
        again(folder)


def test_sums_are_those_of_sha256sum(folder: Path) -> None:
    import subprocess

    subprocess.run(["sha256sum", "--check", "--quiet", trusted.SUMS], cwd=folder, check=True)
