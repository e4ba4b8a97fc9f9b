"""What the ranks of test_job_npu.py do: all jobs one after the other, because starting torch, torch_npu and
the host NPU takes longer than most of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from dsv3_port import PortPlan, hostnpu
from dsv3_port.cli.serve import summary
from dsv3_port.engine import serve
from dsv3_port.engine.job import Job, check_job, run_rank
from dsv3_port.engine.launch import run_ranks
from dsv3_port.engine.report import JobReport
from dsv3_port.engine.request_file import Asked
from dsv3_port.engine.serve import ServeJob, serve_rank
from dsv3_port.engine.settings import Settings
from dsv3_port.parallel import TensorParallel

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
PROMPTS = ("The", "Once upon a time")
GE = {"exe_mode": "dynamo"}
ACLGRAPH = GE | {"enable_aclgraph": "1"}
JOB = {"model_dir": str(TINY), "world_size": "2", "max_new_tokens": "8", "batch_size": "2"}


def infer_job(flags: dict[str, str]) -> Job:
    """A batch of two ragged prompts."""
    settings = Settings.from_env_and_flags(JOB | {"input_max_len": "16"} | flags, {})
    return check_job(Job(settings, PROMPTS, PortPlan.full(), "host-npu", "float32"))


def serve_job(flags: dict[str, str]) -> Job:
    """Three requests in two slots, one of them admitted when another is done."""
    asked = tuple(Asked(f"line {n}", text) for n, text in enumerate((*PROMPTS, PROMPTS[0]), 1))
    settings = Settings.from_env_and_flags(JOB | {"block_size": "16"} | flags, {})
    texts, plan = tuple(a.prompt for a in asked), PortPlan.upto("paged_cache")
    job = check_job(ServeJob(settings, texts, plan, "host-npu", "float32", asked=asked))
    assert isinstance(job, ServeJob)
    return replace(job, requests=serve._requests(job))


def several(parallel: TensorParallel, jobs: dict[str, Job]) -> dict[str, Any]:
    found = {}
    for name, job in jobs.items():
        torch._dynamo.reset()
        counters.clear()  # graphs of the job before are not this one's
        work: Any = serve_rank if isinstance(job, ServeJob) else run_rank
        found[name] = work(parallel, job)
    return found


def told(report: Any) -> dict[str, Any]:
    """Of rank 0's report, as JSON."""
    if isinstance(report, JobReport):
        return report.to_dict() | {"out": report.summary()}
    return {"rows": report.rows, "out": summary(report)}


def main(file: str) -> None:
    hostnpu.enable()
    jobs = {
        "infer ge": infer_job(GE),
        "infer aclgraph": infer_job(ACLGRAPH),
        "serve ge": serve_job(GE),
        "serve captured": serve_job(ACLGRAPH),
    }
    reports = run_ranks(several, 2, jobs, device="npu")[0]
    Path(file).write_text(json.dumps({name: told(report) for name, report in reports.items()}))


if __name__ == "__main__":
    from tests.engine import npu_ranks  # ranks find `several` by its module's name

    npu_ranks.main(sys.argv[1])
