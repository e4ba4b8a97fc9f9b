"""The rehearsal of container and conda files, on small ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("rehearse", ROOT / "ci" / "npu" / "rehearse.py")
assert spec is not None and spec.loader is not None
rehearse = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rehearse)

FILE = """
# a comment
ARG IMAGE=some:1
FROM ${IMAGE}
ARG NAME=plain
RUN apt-get update \\
    && apt-get install -y g++
WORKDIR /dsv3-port
COPY . .
RUN test -f pyproject.toml && test ! -e .git \\
    && echo "$NAME" > /opt/name.txt
ENV SEEN=/dsv3-port/ci
RUN test -d "$SEEN" && echo slow >> /opt/name.txt
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Without a virtual environment; the last step (the package's own command) is only noted."""
    found: list[str] = []
    real = rehearse.run

    def run(command: str, folder: Path, env: dict[str, str]) -> bool:
        found.append(command)
        return True if command.startswith(("dsv3-port", "pip")) else real(command, folder, env)

    monkeypatch.setattr(rehearse, "run", run)
    monkeypatch.setattr(rehearse.venv, "create", lambda *words, **more: None)
    return found


def test_steps_run_in_order_in_a_folder_that_stands_for_the_root(tmp_path, calls, capsys):
    file = tmp_path / "Dockerfile"
    file.write_text(FILE)
    words = ["container", str(file), "--root", str(tmp_path / "box"), "--arg", "NAME=given"]
    assert rehearse.main([*words, "--skip", "slow"]) == 0
    assert (tmp_path / "box" / "opt" / "name.txt").read_text() == "given\n"
    assert len(calls) == 2 and calls[-1].startswith("dsv3-port --help")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not tried")]
    assert [line.split()[2] for line in told] == ["FROM", "RUN", "RUN"]


def test_a_step_that_fails_ends_it(tmp_path, calls):
    file = tmp_path / "Dockerfile"
    file.write_text("RUN false\nRUN echo never\n")
    assert rehearse.main(["container", str(file), "--root", str(tmp_path / "box")]) == 1
    assert calls == ["false"]


def test_only_a_clean_folder(tmp_path, capsys):
    with pytest.raises(SystemExit):
        rehearse.main(["container", "--root", str(tmp_path)])
    assert "needs a clean folder" in capsys.readouterr().err


def test_pips_part_of_a_conda_file(tmp_path, calls, capsys):
    file = ROOT / "environment-npu.yml"
    assert rehearse.main(["conda", str(file), "--root", str(tmp_path / "box")]) == 0
    assert calls[0].startswith("pip install --extra-index-url https://download.pytorch.org")
    assert calls[0].endswith("-c ci/pins-npu.txt -e '.[dev,npu]'")
    assert (tmp_path / "box" / "clone" / "ci" / "pins-npu.txt").is_file()
    assert "not tried  conda-forge: python=3.12" in capsys.readouterr().out
