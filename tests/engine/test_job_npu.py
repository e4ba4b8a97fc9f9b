"""Ranks on the host NPU: the real torch_npu and its HCCL process group over the stand-in give the
CPU's text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsv3_port import PortPlan, generate, load_model, load_tokenizer
from tests.engine.npu_ranks import PROMPTS, TINY, two_layers
from tests.hostnpu.processes import needs_torch_npu

pytestmark = needs_torch_npu
ROOT = Path(__file__).parents[2]


def python(*words: str) -> str:
    """What a process of its own prints; it must end well."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def text_of(folder: Path) -> list[list[int]]:
    """By one process on device cpu."""
    model = load_model(folder, PortPlan.full(), "cpu", "float32")
    return [g.token_ids for g in generate(model, load_tokenizer(folder), list(PROMPTS), 8)]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return two_layers(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def want(small) -> list[list[int]]:
    found = text_of(small)
    assert max(map(len, found)) == 8 and len({t for row in found for t in row}) > 4
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory, small) -> dict[str, Any]:
    """Job -> what rank 0 of two reported; skipped where this version has no graph on npu."""
    file = tmp_path_factory.mktemp("npu") / "reports.json"
    try:
        python("-m", "tests.engine.npu_ranks", str(small), str(file))
    except AssertionError as error:
        if "is not in this version" in str(error):
            pytest.skip("this version has no graph on npu")
        raise
    return json.loads(file.read_text())


def right(two: dict[str, Any], want: list[list[int]]) -> None:
    """Each rank on a device of its own; and no time of the stand-in is told."""
    assert [g["token_ids"] for g in two["generations"]] == want
    assert [r["device"] for r in two["ranks"]] == ["npu:0", "npu:1"]
    assert "times are not shown" in two["out"] and "tokens/s" not in two["out"]
    assert not [name for name in (*two, *two["generations"][0]) if "second" in name]


def test_two_ranks_of_the_command_give_the_text_of_one(tmp_path):
    """A batch of two ragged prompts, eager and with all layers, as a user types it."""
    file = tmp_path / "two.json"
    words = ["infer", "--model-dir", str(TINY), "--device", "host-npu", "--world-size", "2"]
    words += ["--dtype", "float32", "--max-new-tokens", "8", "--batch-size", "2"]
    words += [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    out = python("-m", "dsv3_port", *words, "--input-max-len", "16", "--json", str(file))
    right(json.loads(file.read_text()) | {"out": out}, text_of(TINY))


@pytest.mark.parametrize("mode", ["ge", "aclgraph"])
def test_two_ranks_give_the_text_of_one(mode, want, ran):
    """The same in graphs."""
    right(ran[f"infer {mode}"], want)
    assert ran[f"infer {mode}"]["mode"] == mode


@pytest.mark.parametrize("mode", ["ge", "captured"])
def test_slots_of_two_ranks_give_the_text_of_one(mode, want, ran):
    """Three requests in two slots, one of them admitted when another is done; one graph a rank."""
    found = ran[f"serve {mode}"]
    assert [row["token_ids"] for row in found["rows"]] == [*want, want[0]]
    assert "2 ranks, 2 slots, " in found["out"]
    assert "graphs: 1 captured or compiled before the first request, 0 after it" in found["out"]
