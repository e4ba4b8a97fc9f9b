"""pyproject.toml, the pins, both conda files and what the doctor and the set-up ask for are in
step."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from dsv3_port.doctor import machine as doctor
from dsv3_port.doctor import versions

from .test_ci_run import locked, venv_checks

import matrix  # isort: skip  (ci/ is on the path from test_ci_run on)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = {"environment.yml": ["dev"], "environment-npu.yml": ["dev", "npu"]}
PINS = {"environment.yml": "pins.txt", "environment-npu.yml": "pins-npu.txt"}
PYTHONS = [
    f"3.{minor}" for minor in range(venv_checks.SUPPORTED[0][1], venv_checks.SUPPORTED[1][1] + 1)
]


def requirements(*extras: str) -> list[Requirement]:
    """Of the base package and these extras; an extra may name others, as dsv3-port[bench]."""
    texts = list(PROJECT["dependencies"])
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    found = [Requirement(text) for text in texts]
    inner = {e for r in found if r.name == PROJECT["name"] for e in r.extras} - set(extras)
    if inner:
        return requirements(*extras, *inner)
    return [r for r in found if r.name != PROJECT["name"]]


def pins(python: str) -> dict[str, Version]:
    found = {}
    for r in map(Requirement, locked.requirement_lines(ROOT / "ci" / "pins.txt")):
        if r.marker is None or r.marker.evaluate(
            {"python_version": python, "python_full_version": f"{python}.9"}
        ):
            (only,) = r.specifier
            found[canonicalize_name(r.name)] = Version(only.version)
    return found


def conda(name: str) -> tuple[dict[str, str], list[str]]:
    """(conda packages -> version, pip's lines)."""
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert content["channels"] == ["conda-forge"]
    packages = dict(
        (d.split("=") + [""])[:2] for d in content["dependencies"] if isinstance(d, str)
    )
    (pip,) = [d["pip"] for d in content["dependencies"] if isinstance(d, dict)]
    return packages, pip


@pytest.mark.parametrize(("name", "extras"), CONDA.items())
def test_conda_files_install_what_pyproject_names(name: str, extras: list[str]) -> None:
    packages, pip = conda(name)
    own = {canonicalize_name(r.name) for r in requirements(*extras)}
    assert not own & packages.keys(), "named twice: pip installs it from pyproject.toml"
    assert {"python", "pip", "cxx-compiler"} <= packages.keys()
    assert SpecifierSet(PROJECT["requires-python"]).contains(packages["python"])
    assert f"-c ci/{PINS[name]}" in pip and f"-e .[{','.join(extras)}]" in pip
    rest = [line for line in pip if not line.startswith(("-c ", "-e ", "--extra-index-url "))]
    assert not rest, "packages belong into pyproject.toml"


def test_the_pair_for_a_card_is_one_everywhere() -> None:
    """Extra, pins, container, workflow, doctor's words: what is documented with a CANN."""
    card = versions.CARD
    optional = {r.name: r for r in map(Requirement, PROJECT["optional-dependencies"]["npu"])}
    assert str(optional["torch"].specifier) == f"=={card.torch}"
    assert str(optional["torch-npu"].specifier) == f"=={card.torch_npu}"
    lines = locked.requirement_lines(ROOT / "ci" / "pins-npu.txt")
    assert {f"torch=={card.torch}", f"torch-npu=={card.torch_npu}"} <= set(lines)
    text = (ROOT / "ci" / "npu" / "Dockerfile").read_text(encoding="utf-8")
    assert f"ARG TORCH={card.torch}\nARG TORCH_NPU={card.torch_npu}\n" in text
    assert f"ARG CANN_IMAGE=quay.io/ascend/cann:{card.cann}-" in text
    npu = (ROOT / ".github" / "workflows" / "npu.yml").read_text(encoding="utf-8")
    assert f'default: "{card.torch}"' in npu and f"cann:{card.cann}-" in npu
    command = f"torch=={card.torch} torch-npu=={card.torch_npu}"
    assert versions.install_command().endswith(command) and versions.CPU_INDEX in text
    assert command in (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")


def test_pins_for_a_card_are_the_others_but_for_what_its_torch_asks() -> None:
    """torch 2.12.0 forbids the pinned setuptools: with it, pip would take another torch."""
    plain, card = (
        set(locked.requirement_lines(ROOT / "ci" / name)) for name in ("pins.txt", "pins-npu.txt")
    )
    assert {Requirement(x).name for x in plain - card} == {"setuptools", "torch"}
    assert {Requirement(x).name for x in card - plain} == {"setuptools", "torch", "torch-npu"}


def test_the_pins_are_the_tested_torch() -> None:
    assert all(pins(python)["torch"] == Version(versions.TORCH) for python in PYTHONS)


def test_one_range_of_python_everywhere() -> None:
    wanted = SpecifierSet(PROJECT["requires-python"])
    assert [p for p in (f"3.{minor}" for minor in range(7, 20)) if wanted.contains(p)] == PYTHONS
    assert doctor.PYTHONS == venv_checks.SUPPORTED
    workflow = yaml.safe_load(
        (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    )
    for job in ("test", "matrix"):
        assert workflow["jobs"][job]["strategy"]["matrix"]["python"] == PYTHONS
    assert {f"Programming Language :: Python :: {p}" for p in PYTHONS} <= set(
        PROJECT["classifiers"]
    )
    assert PYTHONS == matrix.every_python()


def test_the_doctor_asks_for_the_ranges_of_pyproject() -> None:
    found = {r.name: r.specifier for r in requirements()}
    low, high = (".".join(map(str, v)) for v in doctor.TRANSFORMERS)
    assert found["transformers"] == SpecifierSet(f">={low},<{high.removesuffix('.0')}")
    assert found["torch"] == SpecifierSet(f">={'.'.join(map(str, doctor.TORCH))}")


def test_this_environment_is_the_one_that_is_described() -> None:
    wrong = [
        f"{r}: {metadata.version(r.name)}"
        for r in requirements("dev")
        if (r.marker is None or r.marker.evaluate())
        and not r.specifier.contains(metadata.version(r.name))
    ]
    assert not wrong


def test_mindspeed_is_named_where_it_can_be_had_and_never_required() -> None:
    text = (ROOT / "environment-npu.yml").read_text(encoding="utf-8")
    assert re.search(r"# - git\+https://\S+/MindSpeed", text)
    assert "mindspeed" not in {r.name.lower() for r in requirements("dev", "npu")}
