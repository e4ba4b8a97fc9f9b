"""What each sub-command prints. The work is done in the rooms below and imported only when its
command runs.

A command returns its exit code: 0, or 1 where it ran and the answer is "no" (a notebook failed,
models differ, a check of doctor failed).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PortError
from ..files import write_atomic
from ..steps import STEPS
from .words import (
    check_positive,
    check_target,
    long_dtype,
    parse_gib,
    parse_ints,
    parse_plan,
    read_prompts,
)

if TYPE_CHECKING:
    from ..course.tutorial import NotebookRun


def doctor(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from ..doctor.machine import FAIL, checks

    found = checks()
    if args.room:
        from ..doctor import classroom as room

        found += room.checks()
    if args.json:
        print(json.dumps([c.to_dict() for c in found], indent=1, ensure_ascii=False))
    else:
        print(
            tabulate(
                [
                    (f"[{c.status}]", c.name, c.detail + (f"\n→ {c.remedy}" if c.remedy else ""))
                    for c in found
                ],
                ("", "what", "found"),
                tablefmt="plain",
                maxcolwidths=[None, None, 90],
            )
        )
    return int(any(c.status == FAIL for c in found))


def hostnpu(args: argparse.Namespace) -> int:
    from ..hostnpu import status
    from ..hostnpu.install import install

    if args.action == "install":
        print(f"torch_npu is in {install()}")
    found = status()
    if found.reason:
        print(f"device host-npu cannot be had here: {found.reason}")
        return 1
    print(
        f"device host-npu: torch_npu {found.torch_npu} in {found.folder}, the stand-in for CANN is "
        + ("compiled" if found.compiled else "compiled at its first use (a second)")
    )
    return 0


def plan(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from ..config import PRESETS, DeepseekV3Config

    if args.steps:
        listed = [(s.number, s.id, f"{s.title} · {s.title_zh}", s.notebook, s.saves) for s in STEPS]
        print(
            tabulate(
                listed, ("", "step", "title", "notebook", "saves on an NPU"), disable_numparse=True
            )
        )
        return 0
    check_positive(args, "batch", "seq_len")
    from ..forecast.planner import GIB, forecast, smallest_world, world_sizes

    is_preset = args.config in PRESETS
    if not is_preset and not Path(args.config).is_dir():
        raise PortError(
            f"--config: {args.config!r} is neither a checkpoint folder nor one of {', '.join(PRESETS)}"
        )
    config = (DeepseekV3Config.preset if is_preset else DeepseekV3Config.from_pretrained)(
        args.config
    )
    if args.forecast:
        return _plan_times(args, config)
    hbm, dtypes = parse_gib(args.hbm), [long_dtype(d.strip()) for d in args.dtype.split(",")]
    rows = forecast(
        config,
        parse_ints(args.world_size, "--world-size"),
        hbm,
        dtypes,
        args.batch,
        args.seq_len,
        parse_plan(args.plan),
    )
    if args.json:
        print(json.dumps([asdict(r) for r in rows], indent=1))
        return 0

    def gib(count: int) -> str:
        return f"{count / GIB:.2f}"

    parts = list(dict.fromkeys(name for r in rows for name in r.weights_bytes))
    print(
        f"GiB a card: {args.config}, batch {args.batch}, {args.seq_len} cached positions, plan {args.plan}"
    )
    print(
        tabulate(
            [
                (
                    r.world_size,
                    r.dtype,
                    *(gib(r.weights_bytes.get(p, 0)) for p in parts),
                    gib(r.kv_latent_bytes),
                    gib(r.kv_expanded_bytes),
                    gib(r.total_bytes),
                    "yes" if r.fits else "no",
                    r.reason,
                )
                for r in rows
            ],
            ("cards", "dtype", *parts, "KV latent", "KV expanded", "total", "fits", "why"),
            stralign="right",
            disable_numparse=True,
        )
    )
    divide = world_sizes(config)
    for dtype in dtypes:
        least = smallest_world(config, hbm, dtype, args.batch, args.seq_len, parse_plan(args.plan))
        print(
            f"{dtype}: "
            + (
                f"{least} cards of {args.hbm} are enough"
                if least
                else "no number of cards is enough"
            )
            + f"; the model can be cut over {', '.join(map(str, divide))}"
        )
    return 0


def _plan_times(args: argparse.Namespace, config: Any) -> int:
    """The roofline forecast of every rung, a column for each number of cards and phase."""
    from tabulate import tabulate

    from ..forecast.roofline import CARDS, forecast_ladder
    from ..plots.forecast import assumptions_text
    from ..steps import step

    check_positive(args, "prefill")
    worlds = parse_ints(args.world_size, "--world-size")
    found = {
        w: forecast_ladder(
            config,
            args.forecast,
            world_size=w,
            batch=args.batch,
            context=args.seq_len,
            prompt=args.prefill,
        )
        for w in worlds
    }
    if args.json:
        print(json.dumps([f.to_dict() for rows in found.values() for f in rows], indent=1))
        return 0
    rungs = list(dict.fromkeys(f.rung for f in found[worlds[0]]))
    heads = [f"{phase}, {w} ranks" for phase in ("prefill", "decode") for w in worlds]
    rows = [
        (
            step(rung).number,
            step(rung).title,
            *(
                f"{f.total.low * 1e3:.1f} to {f.total.high * 1e3:.1f}"
                for phase in ("prefill", "decode")
                for w in worlds
                for f in found[w]
                if f.rung == rung and f.phase == phase
            ),
        )
        for rung in rungs
    ]
    card = CARDS[args.forecast]
    print(
        f"FORECAST, nothing measured: ms a step of {args.config} in bfloat16 on {card.name}; prefill of "
        f"{args.prefill} tokens, decode of batch {args.batch} with {args.seq_len} cached"
    )
    print(tabulate(rows, ("", "step", *heads), stralign="right", disable_numparse=True))
    print(
        f"Assumed: {assumptions_text()}.\nRates: {card.source}. Whether it fits: without --forecast."
    )
    return 0


def shard(args: argparse.Namespace) -> int:
    check_positive(args, "world_size")
    from ..weights.sharding import shard_checkpoint

    report = shard_checkpoint(
        args.model_path,
        args.output_path,
        args.world_size,
        plan=parse_plan(args.plan),
        dtype=args.dtype,
        ranks=parse_ints(args.ranks, "--ranks") if args.ranks else None,
        jobs=args.jobs,
        dry_run=args.dry_run,
        resume=args.resume,
        verify=args.verify,
        progress=not args.json,
    )
    print(json.dumps(report.to_dict(), indent=1) if args.json else report.summary())
    return 0


def infer(args: argparse.Namespace) -> int:
    from ..engine.settings import Settings

    settings = Settings.from_env_and_flags(vars(args))
    if args.show_settings:
        from tabulate import tabulate

        print(tabulate(settings.rows(), ("variable", "value", "from"), disable_numparse=True))
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
        )
    )
    if report is not None:
        print(report.summary())
        if args.json:
            _write_json(args.json, report.to_dict())
    return 0


def _print_text(text: str) -> None:
    print(text, end="", flush=True)


def _write_json(path: str, value: Any) -> None:
    try:
        write_atomic(Path(path), json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise PortError(f"{path}: cannot be written: {error.strerror or error}") from error


def bench(args: argparse.Namespace) -> int:
    from ..bench.ladder import bench_ladder
    from ..bench.measure import save

    check_positive(args, "context", "batch", "prefill", "rounds")
    check_target(args.out)
    check_target(args.plot, (".png", ".svg"))
    results = bench_ladder(
        args.profile,
        device=args.device,
        dtype=args.dtype,
        context=args.context,
        batch=args.batch,
        prefill=args.prefill,
        rounds=args.rounds,
        compiled=args.compile,
        alone=args.alone,
        peer=args.peer,
        seed=args.seed,
    )
    print(results.table())
    if args.out:
        print(f"\nadded to {save(results, args.out)}")
    if args.plot:
        from ..plots.bars import ladder
        from ..plots.style import save as save_figure

        print(f"drawn as {save_figure(ladder(results), args.plot)}")
    return 0


def record(args: argparse.Namespace) -> int:
    from ..bench.record import make_record, save

    check_positive(args, "context", "batch", "prefill", "rounds")
    made = make_record(
        args.device,
        args.profile,
        dtype=args.dtype,
        context=args.context,
        batch=args.batch,
        prefill=args.prefill,
        rounds=args.rounds,
        compiled=not args.eager,
        busy=args.busy,
        seed=args.seed,
        command=["dsv3-port", *sys.argv[1:]],
    )
    print(made.results.table())
    worst = max(made.sign_off.differences.values())
    print(
        f"\nsigned off: logits within {worst:.1e} of upstream (allowed {made.sign_off.bound:.0e} in "
        f"{made.sign_off.dtype}), {made.sign_off.greedy_tokens} greedy tokens equal in "
        f"{', '.join(made.sign_off.greedy_models)}\nwritten as {save(made, args.out)}"
    )
    return 0


def compare(args: argparse.Namespace) -> int:
    import torch

    check_positive(args, "tokens")
    from ..check.sides import PEER, Side, compare_sides, default_dtype
    from ..config import DeepseekV3Config
    from ..engine.runner import pick_device
    from ..engine.tokenizer import encode, load_tokenizer, pad_left

    def side(
        path: str, plan: str, device: str | None, dtype: str | None, ranks: int, peer: bool = False
    ) -> Side:
        where = pick_device(device or args.device)
        return Side(
            path,
            parse_plan(plan),
            str(where),
            dtype or args.dtype or default_dtype(where),
            ranks,
            peer,
        )

    peer = args.b == PEER
    path_b = args.a if peer or not args.b else args.b
    a = side(args.a, args.plan_a, args.device_a, args.dtype_a, args.ranks_a)
    b = side(path_b, args.plan_b, args.device_b, args.dtype_b, args.ranks_b, peer)
    mask = None
    if args.prompt:
        tokenizer = load_tokenizer(args.a)
        ids, mask = pad_left(encode(tokenizer, args.prompt), tokenizer.pad_token_id or 0)
    else:
        generator = torch.Generator().manual_seed(args.seed)
        ids = torch.randint(
            DeepseekV3Config.from_pretrained(args.a).vocab_size,
            (2, args.tokens),
            generator=generator,
        )
    names = tuple(
        f"{s.path} ("
        + ", ".join(
            (PEER if s.peer else plan, s.dtype, *([f"{s.ranks} ranks"] if s.ranks > 1 else []))
        )
        + ")"
        for s, plan in ((a, args.plan_a), (b, args.plan_b))
    )
    reports = compare_sides(a, b, ids, mask, args.rtol, (names[0], names[1]))
    print("\n\n".join(map(str, reports)))
    return 0 if all(r.ok for r in reports) else 1


def tutorial(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..course.tutorial import find_notebooks, run_tutorial

    notebooks = Path(args.notebooks) if args.notebooks else find_notebooks()
    out = Path(args.out) if args.out else notebooks.resolve().parent / "out"
    only = [word.strip() for text in args.only or () for word in text.split(",")]

    def tell(run: NotebookRun) -> None:
        tqdm.write(
            f"{'ok    ' if run.status == 'ok' else 'FAILED'} {run.name:<20} {run.seconds:7.1f} s  "
            f"{run.cells} code cells{'  ' + run.error if run.error else ''}"
        )  # above the bars
        sys.stdout.flush()

    runs = run_tutorial(
        notebooks,
        out,
        profile=args.profile,
        device=args.device,
        only=only,
        seed=args.seed,
        timeout=args.timeout,
        progress=not args.quiet,
        on_done=tell,
    )
    failed = [run.name for run in runs if run.status != "ok"]
    print(
        f"\n{len(runs) - len(failed)} of {len(runs)} notebooks ran through in {sum(r.seconds for r in runs):.0f} s"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    print(f"open {out.resolve() / 'index.html'}")
    return int(bool(failed))
