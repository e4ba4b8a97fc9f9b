"""The base package is enough for every command but the tutorial and the pictures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .test_environments import PROJECT, ROOT, requirements

EXTRA = {"course", "plots"}  # rooms that need one
# need pytest: its plugin, and `hostnpu vendor-tests`
APART = {f"dsv3_port.hostnpu.{n}" for n in ("pytest_plugin", "vendor_child", "vendor_tests")}
APART |= {"dsv3_port.ops.triton_decode"}  # Triton, which PyTorch's CUDA build brings
ALONE = """
import importlib, importlib.machinery, json, pkgutil, sys
blocked, extra, apart = map(set, json.loads(sys.argv[1]))
class NotThere(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else super().find_spec(name, path, target)
sys.meta_path[:] = [f for f in sys.meta_path if f is not importlib.machinery.PathFinder] + [NotThere]
import dsv3_port
for module in pkgutil.walk_packages(dsv3_port.__path__, "dsv3_port."):
    if module.name.split(".")[1] not in extra | {"__main__"} and module.name not in apart:
        importlib.import_module(module.name)
from dsv3_port.cli import main
sys.exit(max(main(words.split()) for words in sys.argv[2:]))
"""


def brought_by(names: set[str]) -> set[str]:
    """These distributions and all that they need."""
    found: set[str] = set()
    todo = {canonicalize_name(name) for name in names}
    while todo:
        name = todo.pop()
        found.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        for r in map(Requirement, needs):
            if r.marker is None or r.marker.evaluate({"extra": ""}):
                todo |= {canonicalize_name(r.name)} - found
    return found


def blocked() -> set[str]:
    """Top-level modules that only an extra brings."""
    base = brought_by({r.name for r in requirements()}) | {"setuptools", PROJECT["name"]}
    owners: dict[str, set[str]] = {}
    for d in metadata.distributions():
        for module in modules_of(d):
            owners.setdefault(module, set()).add(canonicalize_name(d.metadata["Name"]))
    return {module for module, names in owners.items() if not base & names}


def modules_of(d: metadata.Distribution) -> set[str]:
    """Top-level modules of what is installed. metadata.packages_distributions of Python 3.10 knows those
    of a top_level.txt only."""
    if listed := d.read_text("top_level.txt"):
        return set(listed.split())
    parts = [f.parts for f in d.files or () if f.suffix in (".py", ".so")]
    firsts = {p[0] if len(p) > 1 else p[0].partition(".")[0] for p in parts}
    return {f for f in firsts if f.isidentifier()}


def alone(*commands: str) -> subprocess.CompletedProcess[str]:
    """Import every base room in a process where nothing of an extra can be imported; run commands."""
    given = json.dumps([sorted(blocked()), sorted(EXTRA), sorted(APART)])
    return subprocess.run(
        [sys.executable, "-c", ALONE, given, *commands], capture_output=True, text=True, cwd=ROOT
    )


def test_the_extras_are_what_is_blocked():
    assert {"matplotlib", "PIL", "papermill", "nbformat", "IPython", "pytest"} <= blocked()
    assert not {"torch", "transformers", "safetensors", "numpy", "tqdm"} & blocked()


@pytest.mark.slow
def test_base_rooms_and_commands_need_no_extra(tmp_path):
    done = alone(
        "plan --config tiny --world-size 2",
        "plan --forecast",
        f"shard --model-path data/tiny-dsv3 --output-path {tmp_path}/r --world-size 2",
        "infer --model-dir data/tiny-dsv3 --max-new-tokens 2 --device cpu",
    )
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "extra"), [("tutorial --only 00", "tutorial"), ("hostnpu vendor-tests .", "dev")]
)
def test_a_missing_extra_is_named(command, extra):
    done = alone(command)
    assert done.returncode == 2
    assert re.search(rf"is not installed.*pip install 'dsv3-port\[{extra}\]'", done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1


def test_every_extra_and_requirement_has_its_reason():
    """In pyproject.toml, beside the line or above it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = [r for r in PROJECT["dependencies"] if not r.startswith("torch>")]
    for line in wanted:
        (found,) = re.findall(rf'^( *# .*\n)? *"{re.escape(line)}",(.*)$', text, re.MULTILINE)
        assert any("#" in part for part in found), line
    for extra in PROJECT["optional-dependencies"]:
        assert re.search(rf"^{extra} = .*#", text, re.MULTILINE), extra


def test_the_course_that_a_wheel_carries_is_there():
    script = (ROOT / "setup.py").read_text(encoding="utf-8")
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    (folders,) = re.findall(r"^COURSE = \((.*)\)$", script, re.MULTILINE)
    for folder in re.findall(r'"([^"]+)"', folders):
        assert (Path(ROOT) / folder).is_dir() and f"graft {folder}\n" in manifest
