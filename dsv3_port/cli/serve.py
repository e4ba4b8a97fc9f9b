"""`dsv3-port serve`: a file of prompts through slots, with their texts in the file's order."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine.settings import Settings
from ..errors import PortError
from ..files import write_atomic
from ..messages import tr
from .words import PLAN_HELP, check_target, parse_plan, run_arguments, setting_arguments

if TYPE_CHECKING:
    from ..engine.serve import ServeReport

SLOTS = 4  # where neither flag nor environment says
PLAN = "upto:paged_cache"


def arguments(p: argparse.ArgumentParser) -> None:
    p.epilog = (
        "This is a loop over a file, to learn from and to check with: no HTTP server, no preemption, no "
        "prefix cache. To serve on NPUs take vLLM with vllm-ascend: https://docs.vllm.ai/projects/ascend"
    )
    setting_arguments(p)
    p.add_argument(
        "--prompts",
        metavar="FILE",
        required=True,
        help="text, one prompt a line; .json, a list as for infer; .jsonl, one a line: a text, a list of chat "
        "messages, or an object with prompt or messages, max_new_tokens, seed",
    )
    p.add_argument(
        "--slots",
        dest="batch_size",
        metavar="N",
        help=f"sequences decoded together, as --batch-size (default: BATCH_SIZE, else {SLOTS})",
    )
    p.add_argument(
        "--blocks",
        type=int,
        help="of the whole paged cache (default: what the slots can fill); requests wait for them",
    )
    p.add_argument(
        "--out",
        metavar="FILE",
        help="results there as JSON Lines, whole or not at all (default: stdout, when all are done)",
    )
    p.add_argument("--plan", default=PLAN, help=f"{PLAN_HELP} (default: {PLAN})")
    run_arguments(p)


def run(args: argparse.Namespace) -> int:
    settings = Settings.from_env_and_flags(vars(args))
    if "batch_size" not in settings.origin:
        settings = replace(settings, batch_size=SLOTS)
    from ..engine.request_file import read_requests
    from ..engine.serve import ServeJob, run_serve

    check_target(args.out)
    asked = read_requests(args.prompts, settings.tokenizer_mode == "chat")
    report = run_serve(
        ServeJob(
            settings,
            tuple(a.prompt for a in asked),
            parse_plan(args.plan),
            args.device,
            args.dtype,
            args.temperature,
            args.seed,
            progress=True,
            top_k=args.top_k,
            top_p=args.top_p,
            generation_config=args.generation_config,
            asked=asked,
            blocks=args.blocks,
        )
    )
    if report is None:
        return 0
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in report.rows)
    if args.out:
        try:
            write_atomic(Path(args.out), lines)
        except OSError as error:
            raise PortError(f"{args.out}: cannot be written: {error.strerror or error}") from error
    else:
        print(lines, end="")
    print(summary(report), file=sys.stderr)
    return 0


def summary(r: ServeReport) -> str:
    """What was done, in counts; the times of other machines are not those of this loop."""
    from ..count.batching import Batching, in_batches
    from ..engine.report import headline

    here, static = Batching(r.slots, tuple(r.occupancy)), in_batches(r.tokens, r.slots)
    slots = tr("{slots} slots").format(slots=r.slots)
    eager = tr("graphs: none, eager")
    graphs = tr(
        "graphs: {graphs} captured or compiled before the first request, {later} after it"
    ).format(graphs=r.graphs, later=r.later_graphs)
    tokens = tr("{requests} requests, {prompt} prompt tokens, {new} new")
    steps = tr(
        "{steps} decode steps, {share:.0%} of their rows had a request; in batches of {slots}, one after the "
        "other: {steps2} steps, {share2:.0%}"
    )
    blocks = tr("blocks of {size}: {most} of {all} in use at most, all given back")
    return "\n".join(
        (
            headline(r.model_name, len(r.ranks), slots, r.mode, r.dtype, r.sampling),
            tokens.format(
                requests=len(r.rows),
                prompt=sum(row["prompt_tokens"] for row in r.rows),
                new=sum(r.tokens),
            ),
            steps.format(
                steps=here.steps,
                share=here.share,
                slots=r.slots,
                steps2=static.steps,
                share2=static.share,
            ),
            eager if r.mode == "eager" else graphs,
            blocks.format(size=r.block_size, most=r.most_blocks, all=r.blocks),
        )
    )
