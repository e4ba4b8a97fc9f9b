"""README stays true: its tables are the code's, its files exist, its Python runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_code():
    done = subprocess.run([sys.executable, ROOT / "ci" / "readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_local_link_exists():
    links = [m for m in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in m]
    assert len(links) > 10
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_the_python_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_command_in_the_readme_parses():
    from dsv3_port.cli import make_parser

    blocks = "\n".join(re.findall(r"```shell\n(.*?)```", TEXT, re.DOTALL))
    commands = [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith("dsv3-port ")]
    assert len(commands) >= 5
    for words in commands:
        make_parser().parse_args(words[1:])
