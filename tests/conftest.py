"""Marks by place, and what must not leak from one test into the next.

`make test` leaves out what is marked; `make test-all` and .ci/run leave out nothing but the browser
where there is none.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import setuptools  # noqa: F401  # now: it asserts that nobody has imported Python's own distutils before
import torch

from dsv3_port import messages
from dsv3_port.engine import launch
from tests import forks

os.environ["DSV3_LANG"] = "en"  # whatever this machine speaks
TESTS = Path(__file__).parent
# a person's options are for the run that they started, not for the pytest that a test starts
os.environ.pop("PYTEST_ADDOPTS", None)
# ranks of `run_ranks` in the tests themselves; those of a command that a test starts are a user's
launch.START_METHOD = forks.START_METHOD
# place below tests/, a folder, a file or a test's name in it -> mark
MARKS = {
    "hostnpu/": "hostnpu",
    "house/test_forks.py": "ranks",
    "engine/test_job_npu.py": "hostnpu",
    "engine/test_job.py": "ranks",
    "engine/test_job_ends.py": "ranks",
    "engine/test_job_int8.py": "ranks",
    "engine/test_parallel.py": "ranks",
    "engine/test_serve.py": "ranks",
    "check/test_rank_calls.py": "ranks",
    "engine/test_continuous.py::test_one_graph_by_inductor": "compile",
    "engine/test_graph.py": "compile",
    "ops/test_compile.py": "compile",
    "count/test_compiled.py": "compile",
    "course/test_jupyterlab.py": "browser",
    "course/test_pages_browser.py": "browser",
    "bench/test_cases.py": "slow",
    "bench/test_gpu_bench.py": "slow",
    "bench/test_ladder.py": "slow",
    "bench/test_limit.py": "slow",
    "bench/test_llamacpp.py": "slow",
    "bench/test_record.py": "slow",
    "bench/test_sweep.py": "slow",
    "check/test_faults.py": "slow",
    "check/test_sides.py": "slow",
    "ci/test_readme.py::test_tables_are_those_of_the_code": "slow",
    "ci/test_torch_build.py": "slow",
    "ci/test_workflows.py": "slow",
    "cli/test_cli.py::test_plan_": "slow",
    "course/test_chinese.py": "slow",
    "course/test_filled.py": "slow",
    "course/test_interrupted.py": "slow",
    "course/test_slots.py": "slow",
    "course/test_tutorial.py": "slow",
    "engine/test_nonfinite.py": "slow",
    "engine/test_runner.py": "slow",
    "forecast/test_planner.py": "slow",
    "forecast/test_roofline.py": "slow",
    "forecast/test_traced.py": "slow",
    "model/test_equivalence.py::test_random_configs": "slow",
    "ops/test_triton_decode.py::test_the": "slow",
    "model/test_decode_attention.py::test_compiled": "compile",
    "model/test_hooks.py::test_compiled": "compile",
    "plots/": "slow",
    "weights/test_bench_shard.py": "slow",
    "weights/test_shard.py": "slow",
    "weights/test_shard_interrupted.py": "slow",
    "weights/test_shard_memory.py": "slow",
    "weights/test_synthetic.py::test_processes": "slow",
}

# files with tests of half a minute and more, the longest first: they begin while there is enough else to do, and
# no worker of xdist is left with one of them at the end
LONG = (
    "hostnpu/test_inside.py",
    "engine/test_job_npu.py",
    "hostnpu/test_collectives.py",
    "course/test_filled.py",
    "course/test_chinese.py",
    "ci/test_wheel.py",
    "ci/test_extras.py",
    "hostnpu/test_program.py",
    "engine/test_speculative.py",
    "model/test_paged.py",
)


def mark_of(place: str) -> str | None:
    """`place` is a test's id below tests/: engine/test_job.py::test_name[parameters]."""
    return next((mark for prefix, mark in MARKS.items() if place.startswith(prefix)), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.nodeid.partition("::")[2]
        mark = mark_of(f"{item.path.relative_to(TESTS).as_posix()}::{name}")
        if mark:
            item.add_marker(mark)
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: turn(item.path.relative_to(TESTS).as_posix()))


def turn(file: str) -> int:
    """When a file below tests/ begins: the long ones in their order, then all others."""
    return LONG.index(file) if file in LONG else len(LONG)


def pytest_collection_finish() -> None:
    """What is imported and collected now stays until the end, and graphs are made of many small objects:
    without this Python looks through all of it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture
def real_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank of this test is a new Python, as a user's."""
    monkeypatch.setattr(launch, "START_METHOD", "spawn")


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No process group, default dtype, thread count or language of one test meets the next."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    messages.use("en")
    yield
    if measuring := sys.modules.get("dsv3_port.bench.measure"):
        measuring._manner = measuring._Manner()  # a notebook's patience is not a bench's
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        pytest.fail("the test left a process group behind")
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
