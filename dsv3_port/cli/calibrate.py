"""`dsv3-port calibrate`: the scales of an int8 cache, from a text, into one file beside the weights."""

from __future__ import annotations

import argparse

from ..engine.settings import Settings
from ..messages import tr
from .words import DEVICE_HELP, DTYPE_HELP, PLAN_HELP, parse_plan, read_prompts, setting_arguments

PLAN = "production+w8a8"


def arguments(p: argparse.ArgumentParser) -> None:
    p.epilog = (
        "Writes kv_cache_scales.safetensors into the model's folder, which a plan with +c8 reads. Take a text "
        "like the one that will be served: what is larger than its largest latent is clipped."
    )
    setting_arguments(p)
    p.add_argument(
        "--prompts",
        metavar="FILE",
        required=True,
        help="the calibration text: a JSON list of texts or of lists of chat messages",
    )
    p.add_argument("--plan", default=PLAN, help=f"{PLAN_HELP} (default: {PLAN})")
    p.add_argument("--device", default="auto", help=DEVICE_HELP)
    p.add_argument("--dtype", help=DTYPE_HELP)


def run(args: argparse.Namespace) -> int:
    settings = Settings.from_env_and_flags(vars(args))
    from ..engine.calibrate import calibrate_rank
    from ..engine.job import Job, run_job
    from ..weights.kv_scales import write_kv_scales

    prompts = read_prompts(None, args.prompts, settings.tokenizer_mode == "chat")
    # what it looks for is there before anything is cached
    plan = parse_plan(args.plan).replace(kv_cache_dtype="model")
    job = Job(settings, tuple(prompts), plan, args.device, args.dtype, progress=True)
    found = run_job(job, calibrate_rank)
    if found is not None:
        scales, made_of = found
        file = write_kv_scales(settings.model_dir, scales, made_of)
        line = tr("{n} scales from {least} to {most}, of {tokens} tokens: {file}")
        sizes = [f"{f(scales.values()):.4g}" for f in (min, max)]
        words = {"n": len(scales), "least": sizes[0], "most": sizes[1], "file": file}
        print(line.format(**words, tokens=made_of["tokens"]))
    return 0
