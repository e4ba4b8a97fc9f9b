"""Forks in place of fresh processes (tests/forks.py): nothing is imported twice, and variables, folder,
streams and exit code are a process's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dsv3_port.engine.launch import run_ranks
from dsv3_port.parallel import TensorParallel
from tests import forks


def preloaded(parallel: TensorParallel) -> bool:
    return "tests.preloaded" in sys.modules


def test_ranks_have_imported_everything() -> None:
    assert run_ranks(preloaded, 2) == [True, True]


@pytest.mark.usefixtures("real_starts")
def test_a_test_may_ask_for_real_ones() -> None:
    assert run_ranks(preloaded, 1) == [False]


def test_a_command_has_its_own_variables_folder_and_code(tmp_path) -> None:
    here = dict(os.environ)
    one = forks.start("infer", "--show-settings", env=here | {"MAX_NEW_TOKENS": "77"}, cwd=tmp_path)
    two = forks.start("infer", "--model-dir", "nothing", cwd=tmp_path)
    done, failed = one.end(), two.end()
    assert done.returncode == 0 and not done.stderr
    assert [
        line
        for line in done.stdout.decode().splitlines()
        if "MAX_NEW_TOKENS" in line and "77" in line
    ]
    assert failed.returncode == 2 and b"nothing: no such folder" in failed.stderr
    assert not failed.stdout and dict(os.environ) == here and not one.at.exists()


def test_it_has_imported_everything_wherever_the_first_test_was(tmp_path) -> None:
    code = (
        f"import os, sys; sys.path.insert(0, {str(forks.ROOT)!r}); from tests import forks; "
        "os.chdir(sys.argv[1]); said = forks.python(\"import sys; print('tests.preloaded' in sys.modules)\"); "
        "print(said.stdout.decode(), os.getcwd())"
    )
    given = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=given)
    assert done.stdout.split() == ["True", str(tmp_path)], done.stdout + done.stderr


def test_a_text_is_the_main_module_of_a_fork() -> None:
    code = "import os, sys; print(__name__, 'tests.preloaded' in sys.modules, os.environ['ONE'])"
    done = forks.python(code, env=os.environ | {"ONE": "two"})
    assert (done.returncode, done.stdout.split()) == (0, [b"__main__", b"True", b"two"])
    failed = forks.python("print('before'); raise ValueError('so it is')")
    assert failed.returncode == 1 and failed.stdout == b"before\n"
    assert b"ValueError: so it is" in failed.stderr
