"""The whole run with drafts: over ranks, from a split folder, what the report says, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsv3_port import PortError, PortPlan
from dsv3_port.engine.job import Job, check_job, run_job
from dsv3_port.engine.report import JobReport
from dsv3_port.engine.settings import Settings
from dsv3_port.weights.sharding import shard_checkpoint

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
FULL = PortPlan.full()
PROMPTS = ("Once upon a time", "7 plus 5 is", "The cat")


def job(folder: Path, plan: PortPlan = FULL, **values: Any) -> Job:
    flags = {"model_dir": str(folder), "max_new_tokens": 16, "job_timeout": 120, "batch_size": 3}
    return Job(Settings.from_env_and_flags(flags | values, {}), PROMPTS, plan, "cpu")


def ran(*given: Any, **values: Any) -> JobReport:
    report = run_job(job(*given, **values))
    assert report is not None
    return report


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    report = ran(TINY)
    assert not report.drafted and "drafts" not in report.summary()
    assert "drafted" not in report.to_dict()
    return [g.token_ids for g in report.generations]


def test_the_setting_is_enough(plain) -> None:
    report = ran(TINY, num_speculative_tokens=1)
    assert [g.token_ids for g in report.generations] == plain
    said = f"drafts (MTP): {report.accepted} of {report.drafted} accepted"
    assert said in report.summary() and f"{report.tokens_per_step:.2f} tokens a decode step" in (
        report.summary()
    )
    assert 0 < report.accepted <= report.drafted < 3 * 15
    assert report.to_dict()["tokens_per_step"] == report.tokens_per_step > 1
    with_plan = ran(TINY, FULL.plus("mtp"))
    assert with_plan.accepted == report.accepted
    off = check_job(job(TINY, FULL.plus("mtp"), num_speculative_tokens=0))
    assert not off.plan.mtp


def test_two_ranks_from_a_split_folder(plain, tmp_path) -> None:
    """Ranks verify the same drafts, or tokens_agree would have raised."""
    shard_checkpoint(TINY, tmp_path / "m", 2, plan=FULL.plus("mtp"), dtype="fp32")
    report = ran(tmp_path / "m", PortPlan.upto("10"))
    assert [g.token_ids for g in report.generations] == plain and report.accepted > 0
    report = ran(tmp_path / "m")
    assert [g.token_ids for g in report.generations] == plain and not report.drafted


def test_refusals_before_anything_is_read(tmp_path) -> None:
    with pytest.raises(PortError, match="NUM_SPECULATIVE_TOKENS needs a cache.*'fixed_kv_cache'"):
        check_job(job(TINY, PortPlan.upstream(), num_speculative_tokens=1))
    with pytest.raises(PortError, match="NUM_SPECULATIVE_TOKENS is 2; it can be 0, 1"):
        job(TINY, num_speculative_tokens=2)
    shard_checkpoint(TINY, tmp_path / "m", 2)
    with pytest.raises(PortError, match="without the multi-token prediction.*shard --mtp"):
        check_job(job(tmp_path / "m", num_speculative_tokens=1))
