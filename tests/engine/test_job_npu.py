"""Ranks on the host NPU: the real torch_npu and its HCCL process group over the stand-in give the
CPU's text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostnpu.processes import needs_torch_npu

pytestmark = needs_torch_npu
ROOT = Path(__file__).parents[2]
TINY = ROOT / "data" / "tiny-dsv3"
PROMPTS = ["--prompt", "The", "--prompt", "Once upon a time", "--batch-size", "2"]


def port(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of dsv3-port on the embedded model in float32, which must end well; skipped where this
    version has no graph on npu."""
    done = subprocess.run(
        [sys.executable, "-m", "dsv3_port", command, "--model-dir", str(TINY)]
        + ["--dtype", "float32", *words],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if "is not in this version" in done.stderr:
        pytest.skip("this version has no graph on npu")
    assert done.returncode == 0, done.stderr
    return done


def infer(file: Path, *words: str) -> dict:
    """The JSON report of a run in processes of its own."""
    wanted = ["--max-new-tokens", "8", *PROMPTS, "--json", str(file), *words]
    done = port("infer", *wanted)
    return json.loads(file.read_text()) | {"out": done.stdout}


def tokens(report: dict) -> list[list[int]]:
    return [g["token_ids"] for g in report["generations"]]


@pytest.fixture(scope="module")
def want(tmp_path_factory) -> list[list[int]]:
    return tokens(infer(tmp_path_factory.mktemp("cpu") / "cpu.json", "--device", "cpu"))


@pytest.mark.parametrize(
    "mode",
    [[], ["--exe-mode", "dynamo"], ["--exe-mode", "dynamo", "--enable-aclgraph", "1"]],
    ids=["eager", "ge", "aclgraph"],
)
def test_two_ranks_give_the_text_of_one(mode, want, tmp_path):
    """A batch of two ragged prompts, each rank on a device of its own; and no time of the stand-in
    is told."""
    two = infer(
        tmp_path / "two.json",
        "--device",
        "host-npu",
        "--world-size",
        "2",
        "--input-max-len",
        "16",
        *mode,
    )
    assert tokens(two) == want
    assert [r["device"] for r in two["ranks"]] == ["npu:0", "npu:1"]
    assert "times are not shown" in two["out"] and "tokens/s" not in two["out"]
    assert not [name for name in (*two, *two["generations"][0]) if "second" in name]


@pytest.mark.parametrize("mode", [[], ["--enable-aclgraph", "1"]], ids=["ge", "captured"])
def test_slots_of_two_ranks_give_the_text_of_one(mode, want, tmp_path):
    """Three requests in two slots, one of them admitted when another is done; one graph a rank."""
    file, out = tmp_path / "p.txt", tmp_path / "out.jsonl"
    file.write_text("The\nOnce upon a time\nThe\n")
    words = ["--max-new-tokens", "8", "--slots", "2", "--block-size", "16", "--world-size", "2"]
    words += ["--exe-mode", "dynamo", *mode, "--prompts", str(file), "--out", str(out)]
    done = port("serve", "--device", "host-npu", *words)
    found = [json.loads(line)["token_ids"] for line in out.read_text().splitlines()]
    assert found == [*want, want[0]]
    assert "2 ranks, 2 slots, " in done.stderr
    assert "graphs: 1 captured or compiled before the first request, 0 after it" in done.stderr
