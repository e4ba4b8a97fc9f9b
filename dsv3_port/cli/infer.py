"""`dsv3-port infer`: continue prompts; every setting is a flag and an environment variable."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..engine.settings import Settings
from ..errors import PortError
from ..files import write_atomic
from ..messages import tr
from .streams import open_streams
from .words import (
    PLAN_HELP,
    check_target,
    parse_plan,
    read_prompts,
    run_arguments,
    setting_arguments,
)


def arguments(p: argparse.ArgumentParser) -> None:
    setting_arguments(p)
    p.add_argument(
        "--prompt", action="append", help="a text to continue; may be given several times"
    )
    p.add_argument(
        "--prompts", metavar="FILE", help="JSON list of texts or of lists of chat messages"
    )
    p.add_argument(
        "--pad", action="store_true", help="pad every prompt to INPUT_MAX_LEN in eager mode too"
    )
    p.add_argument("--plan", default="full", help=PLAN_HELP)
    run_arguments(p)
    p.add_argument(
        "--json", metavar="FILE", help="write texts, token ids, times and memory per rank there"
    )
    p.add_argument(
        "--show-settings",
        action="store_true",
        help="print every setting and where it came from; run nothing",
    )


def run(args: argparse.Namespace) -> int:

    settings = Settings.from_env_and_flags(vars(args))
    if args.show_settings:
        heads = (tr("variable"), tr("value"), tr("from"))
        print(tabulate(settings.rows(), heads, disable_numparse=True))
        return 0
    from ..engine.job import Job, run_job

    check_target(args.json)
    prompts = read_prompts(args.prompt, args.prompts, settings.tokenizer_mode == "chat")
    report = run_job(
        Job(
            settings,
            tuple(prompts),
            parse_plan(args.plan),
            args.device,
            args.dtype,
            args.temperature,
            args.seed,
            args.pad,
            on_text=_print_text,
            progress=True,
            top_k=args.top_k,
            top_p=args.top_p,
            generation_config=args.generation_config,
        )
    )
    if report is not None:
        print(report.summary())
        if args.json:
            _write_json(args.json, report.to_dict())
    return 0


def _print_text(text: str) -> None:
    open_streams()  # this may be a rank's process
    print(text, end="", flush=True)


def _write_json(path: str, value: Any) -> None:
    try:
        write_atomic(Path(path), json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise PortError(f"{path}: cannot be written: {error.strerror or error}") from error
