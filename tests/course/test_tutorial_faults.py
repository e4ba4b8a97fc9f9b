"""Tutorials that meet each other, damaged notebooks, pages of a run before."""

from __future__ import annotations

import pytest
from filelock import FileLock

from dsv3_port import PortError
from dsv3_port.course import tutorial


@pytest.fixture
def course(tmp_path):
    """Two damaged notebooks, and a profile."""
    (tmp_path / "nb" / "workshop").mkdir(parents=True)
    (tmp_path / "ci" / "profiles").mkdir(parents=True)
    (tmp_path / "ci" / "profiles" / "tiny.yaml").write_text("profile: tiny\ndevice: cpu\nseed: 0\n")
    for name, text in (("00_a", '{"cells": [{"cell_type": "code", "sou'), ("01_b", "[" * 10**5)):
        (tmp_path / "nb" / f"{name}.ipynb").write_text(text)
    return tmp_path


def test_unreadable_notebooks_are_reported_and_the_rest_runs(course):
    runs = tutorial.run_tutorial(course / "nb", course / "out", progress=False)
    assert [(r.name, r.status) for r in runs] == [("00_a", "failed"), ("01_b", "failed")]
    assert all("not a readable notebook" in r.error for r in runs)
    assert "00_a" in (course / "out" / "index.html").read_text("utf-8")


def test_a_second_tutorial_into_the_same_folder(course):
    (course / "out").mkdir()
    with FileLock(course / "out" / ".lock"):
        with pytest.raises(PortError, match="another tutorial is running into this folder"):
            tutorial.run_tutorial(course / "nb", course / "out", progress=False)
    assert len(tutorial.run_tutorial(course / "nb", course / "out", progress=False)) == 2


@pytest.mark.parametrize("only", [None, ["00"]])
def test_nothing_says_ok_while_a_notebook_runs(only, course, monkeypatch):
    """A kill at this moment leaves what is on the disk now."""
    out = course / "out"
    out.mkdir()
    (out / "index.html").write_text("✓ ok", "utf-8")
    (out / "runs.json").write_text(
        '[{"name": "00_a", "status": "ok", "seconds": 1, "cells": 1, "page": "p"}]'
    )

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tutorial, "run_notebook", killed)
    with pytest.raises(KeyboardInterrupt):
        tutorial.run_tutorial(course / "nb", out, only=only, progress=False)
    assert not (out / "index.html").exists() and '"ok"' not in (out / "runs.json").read_text()
