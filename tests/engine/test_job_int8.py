"""The published layout at reduced width, from FP8 through int8 to text: both formats, one rank and two,
by the commands that a user gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsv3_port import PortError, PortPlan
from dsv3_port.cli.main import main
from dsv3_port.engine.job import Job, check_job, run_job
from dsv3_port.engine.report import JobReport
from dsv3_port.engine.settings import Settings
from dsv3_port.weights.int8_formats import FORMATS
from dsv3_port.weights.sharding import rank_folder, shard_checkpoint

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
FULL = PortPlan.full().replace(quant="w8a8")
PROMPTS = ("Once upon a time", "7 plus 5 is", "The cat")


def job(folder: Path, plan: PortPlan = FULL, **values: Any) -> Job:
    flags = {"model_dir": str(folder), "max_new_tokens": 16, "job_timeout": 120, "batch_size": 3}
    return Job(Settings.from_env_and_flags(flags | values, {}), PROMPTS, plan, "cpu")


def tokens(*given: Any, **values: Any) -> list[list[int]]:
    report = run_job(job(*given, **values))
    assert isinstance(report, JobReport)
    return [g.token_ids for g in report.generations]


@pytest.fixture(scope="module")
def floats() -> list[list[int]]:
    return tokens(TINY, PortPlan.full())


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("form", FORMATS)
def test_split_and_infer(form, world, floats, tmp_path, capsys) -> None:
    """`shard --quant w8a8`, then `infer` without a word about it: the float model's text."""
    out, said = tmp_path / "m", tmp_path / "said.json"
    shard = ["shard", "--model-path", str(TINY), "--output-path", str(out), "--dtype", "bf16"]
    shard += ["--world-size", str(world), "--quant", "w8a8", "--quant-format", form, "--verify"]
    assert main(shard) == 0
    assert f"int8 as {form}" in capsys.readouterr().out
    infer = ["infer", "--model-dir", str(out), "--device", "cpu", "--max-new-tokens", "16"]
    infer += ["--batch-size", "3", "--json", str(said), "--job-timeout", "120"]
    assert main([*infer, *(w for p in PROMPTS for w in ("--prompt", p))]) == 0
    report = json.loads(said.read_text())
    assert report["world_size"] == world
    assert [g["token_ids"] for g in report["generations"]] == floats


def test_straight_from_fp8_and_from_a_checkpoint_of_int8(floats, tmp_path) -> None:
    shard_checkpoint(TINY, tmp_path, 1, plan=PortPlan.upstream().replace(quant="w8a8"))
    made = tmp_path / rank_folder(0, 1)
    for file in tmp_path.glob("tokenizer*.json"):  # beside the rank's folder, not in it
        (made / file.name).write_bytes(file.read_bytes())
    for folder in (TINY, made):
        for plan in (FULL, PortPlan.full()):
            assert tokens(folder, plan, model_name="x") == floats


def test_with_drafts_on_two_ranks(floats, tmp_path) -> None:
    shard_checkpoint(TINY, tmp_path, 2, plan=FULL.plus("mtp"), quant_format="ascend")
    assert tokens(tmp_path, PortPlan.production()) == floats


def test_a_plan_with_int8_for_a_folder_without(tmp_path) -> None:
    shard_checkpoint(TINY, tmp_path, 1)
    with pytest.raises(PortError, match="was split without int8 matrices"):
        check_job(job(tmp_path))
