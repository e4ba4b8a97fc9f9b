"""What the ranks of test_job_npu.py do: all jobs one after the other, because starting torch, torch_npu and
the host NPU takes longer than most of them."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from dsv3_port import DeepseekV3Config, PortPlan, hostnpu
from dsv3_port.cli.serve import summary
from dsv3_port.engine import serve
from dsv3_port.engine.job import Job, check_job, run_rank
from dsv3_port.engine.launch import run_ranks
from dsv3_port.engine.report import JobReport
from dsv3_port.engine.request_file import Asked
from dsv3_port.engine.serve import ServeJob, serve_rank
from dsv3_port.engine.settings import Settings
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights.write import write_checkpoint
from tests.oracle import plain_tensors

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
PROMPTS = ("The", "Once upon a time")
GE = {"exe_mode": "dynamo"}
ACLGRAPH = GE | {"enable_aclgraph": "1"}
JOB = {"world_size": "2", "max_new_tokens": "8", "batch_size": "2"}


def two_layers(folder: Path) -> Path:
    """The embedded model's first two layers, a dense one and one of experts, as a checkpoint: every
    collective of a step, in half the time to compile it."""
    config = DeepseekV3Config.from_pretrained(TINY)
    config = config.replace(num_hidden_layers=2, num_nextn_predict_layers=0)
    gone = tuple(f"model.layers.{n}." for n in range(2, 9))
    kept = {n: t for n, t in plain_tensors(TINY).items() if not n.startswith(gone)}
    made = write_checkpoint(folder / "two-layers", config, kept.items(), dtype=torch.float32)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, made)
    return made


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


def main(model_dir: str, file: str) -> None:
    hostnpu.enable()
    ge, aclgraph = (flags | {"model_dir": model_dir} for flags in (GE, ACLGRAPH))
    jobs = {
        "infer ge": infer_job(ge),
        "infer aclgraph": infer_job(aclgraph),
        "serve ge": serve_job(ge),
        "serve captured": serve_job(aclgraph),
    }
    reports = run_ranks(several, 2, jobs, device="npu")[0]
    Path(file).write_text(json.dumps({name: told(report) for name, report in reports.items()}))


if __name__ == "__main__":
    from tests.engine import npu_ranks  # ranks find `several` by its module's name

    npu_ranks.main(*sys.argv[1:])
