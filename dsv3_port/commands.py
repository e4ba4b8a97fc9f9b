"""What each sub-command prints. The work is done in the rooms below and imported only when its command runs.

A command returns its exit code: 0, or 1 where it ran and the answer is "no" (a notebook failed, models differ, a check
of doctor failed).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import check_positive, check_target, long_dtype, parse_gib, parse_ints, parse_plan, read_prompts
from .errors import PortError
from .steps import STEPS, PortPlan

if TYPE_CHECKING:
    from .engine.runner import Generation
    from .lab.tutorial import NotebookRun


def doctor(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from .lab.doctor import FAIL, checks

    found = checks()
    if args.json:
        print(json.dumps([c.to_dict() for c in found], indent=1, ensure_ascii=False))
    else:
        print(tabulate([(c.status, c.name, c.detail + (f"\n→ {c.remedy}" if c.remedy else "")) for c in found],
                       ("", "what", "found"), tablefmt="plain", maxcolwidths=[None, None, 90]))
    return int(any(c.status == FAIL for c in found))


def plan(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from .config import PRESETS, DeepseekV3Config

    if args.steps:
        listed = [(s.number, s.id, f"{s.title} · {s.title_zh}", s.notebook, s.saves) for s in STEPS]
        print(tabulate(listed, ("", "step", "title", "notebook", "saves on an NPU"), disable_numparse=True))
        return 0
    check_positive(args, "batch", "seq_len")
    from .lab.planner import GIB, forecast

    is_preset = args.config in PRESETS
    if not is_preset and not Path(args.config).is_dir():
        raise PortError(f"--config: {args.config!r} is neither a checkpoint folder nor one of {', '.join(PRESETS)}")
    config = (DeepseekV3Config.preset if is_preset else DeepseekV3Config.from_pretrained)(args.config)
    rows = forecast(config, parse_ints(args.world_size, "--world-size"), parse_gib(args.hbm),
                    [long_dtype(d.strip()) for d in args.dtype.split(",")], args.batch, args.seq_len,
                    parse_plan(args.plan))
    if args.json:
        print(json.dumps([asdict(r) for r in rows], indent=1))
        return 0

    def gib(count: int) -> str:
        return f"{count / GIB:.2f}"

    parts = list(dict.fromkeys(name for r in rows for name in r.weights_bytes))
    print(f"GiB a card: {args.config}, batch {args.batch}, {args.seq_len} cached positions, plan {args.plan}")
    print(tabulate([(r.world_size, r.dtype, *(gib(r.weights_bytes.get(p, 0)) for p in parts), gib(r.kv_latent_bytes),
                     gib(r.kv_expanded_bytes), gib(r.total_bytes), "yes" if r.fits else "no", r.reason) for r in rows],
                   ("cards", "dtype", *parts, "KV latent", "KV expanded", "total", "fits", "why"),
                   stralign="right", disable_numparse=True))
    return 0


def shard(args: argparse.Namespace) -> int:
    check_positive(args, "world_size")
    from .weights.shard import shard_checkpoint

    report = shard_checkpoint(args.model_path, args.output_path, args.world_size, plan=parse_plan(args.plan),
                              dtype=args.dtype, ranks=parse_ints(args.ranks, "--ranks") if args.ranks else None,
                              dry_run=args.dry_run, progress=not args.json)
    print(json.dumps(report.to_dict(), indent=1) if args.json else report.summary())
    return 0


def infer(args: argparse.Namespace) -> int:
    from .engine.settings import Settings

    settings = Settings.from_env_and_flags(vars(args))
    if not settings.model_dir:
        raise PortError("no checkpoint: give --model-dir, or set MODEL_DIR")
    if not Path(settings.model_dir).is_dir():
        raise PortError(f"{settings.model_dir}: no such folder; --model-dir (MODEL_DIR) is a checkpoint folder")
    if settings.world_size > 1:
        raise PortError(f"WORLD_SIZE is {settings.world_size}, and `infer` runs one process: set it to 1, or run ranks "
                        "with dsv3_port.parallel.run_ranks as notebook 09 does")
    check_target(args.json)
    chat = args.chat or settings.tokenizer_mode == "chat"
    prompts = read_prompts(args.prompt, args.prompts, chat)
    done: list[Generation] = []
    for found in _generations(args, settings, prompts, chat):
        done += found
        first = found[0]
        pace = "no further token"
        if first.seconds_per_token:
            pace = (f"{first.seconds_per_token * 1e3:.2f} ms per output token, "
                    f"{len(found) / first.seconds_per_token:.1f} tokens/s")
        print(f"\n[{sum(g.prompt_tokens for g in found)} prompt tokens, {sum(len(g.token_ids) for g in found)} new; "
              f"first token after {first.seconds_first * 1e3:.1f} ms; {pace}; batch {len(found)}]\n")
    if args.json:
        _write_json(args.json, [asdict(g) for g in done])
    return 0


def _generations(args: argparse.Namespace, settings: Any, prompts: list[Any],
                 chat: bool) -> Iterator[list[Generation]]:
    """Batch by batch; one prompt's text is printed as it comes, that of several rows when they are done."""
    from .engine.runner import generate, load_model
    from .engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(settings.model_dir)
    chosen = parse_plan(args.plan).replace(graph=settings.graph)
    model = load_model(settings.model_dir, chosen, args.device, args.dtype, progress=True)
    pad_to = settings.input_max_len if chosen.graph != "eager" else None
    for at in range(0, len(prompts), settings.batch_size):
        batch = prompts[at : at + settings.batch_size]
        stream = None
        if len(batch) == 1:
            print(_shown(batch[0]), end="", flush=True)
            stream = _print_text
        found = generate(model, tokenizer, batch, settings.max_new_tokens, temperature=args.temperature,
                         seed=args.seed, chat=chat, pad_to=pad_to, on_token=stream)
        if stream is None:
            print("\n\n".join(_shown(g.prompt) + g.text for g in found), end="")
        yield found


def _print_text(row: int, text: str) -> None:
    print(text, end="", flush=True)


def _shown(prompt: Any) -> str:
    """A prompt as the terminal shows it before its continuation."""
    return prompt if isinstance(prompt, str) else "".join(f"{m['role']}: {m['content']}\n" for m in prompt)


def _write_json(path: str, value: Any) -> None:
    try:
        Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise PortError(f"{path}: cannot be written: {error.strerror or error}") from error


def bench(args: argparse.Namespace) -> int:
    from .lab.ladder import bench_ladder
    from .lab.measure import save

    check_positive(args, "context", "batch", "prefill", "rounds")
    check_target(args.out)
    check_target(args.plot, (".png", ".svg"))
    results = bench_ladder(args.profile, device=args.device, dtype=args.dtype, context=args.context, batch=args.batch,
                           prefill=args.prefill, rounds=args.rounds, compiled=args.compile, alone=args.alone,
                           peer=args.peer, seed=args.seed)
    print(results.table())
    if args.out:
        print(f"\nadded to {save(results, args.out)}")
    if args.plot:
        from .lab.plots import ladder
        from .lab.style import save as save_figure

        print(f"drawn as {save_figure(ladder(results), args.plot)}")
    return 0


def compare(args: argparse.Namespace) -> int:
    import torch

    check_positive(args, "tokens")
    from .engine.runner import load_model, pick_device
    from .engine.tokenizer import encode, load_tokenizer, pad_left
    from .lab.compare import compare_models
    from .lab.peer import peer_model

    device = pick_device(args.device)
    a = load_model(args.a, parse_plan(args.plan_a), device, args.dtype)
    if args.b == "transformers":
        b: Any = peer_model(load_model(args.a, PortPlan.upstream(), device, args.dtype))
    else:
        b = load_model(args.b or args.a, parse_plan(args.plan_b), device, args.dtype)
    mask = None
    if args.prompt:
        tokenizer = load_tokenizer(args.a)
        ids, mask = pad_left(encode(tokenizer, args.prompt), tokenizer.pad_token_id or 0, device=device)
    else:
        generator = torch.Generator().manual_seed(args.seed)
        ids = torch.randint(a.config.vocab_size, (2, args.tokens), generator=generator).to(device)
    names = (f"{args.a} ({args.plan_a})", args.b if args.b == "transformers" else f"{args.b or args.a} ({args.plan_b})")
    report = compare_models(a, b, ids, mask, args.rtol, names)
    print(report)
    return 0 if report.ok else 1


def tutorial(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .lab.tutorial import find_notebooks, run_tutorial

    notebooks = Path(args.notebooks) if args.notebooks else find_notebooks()
    out = Path(args.out) if args.out else notebooks.resolve().parent / "out"
    only = [word.strip() for text in args.only or () for word in text.split(",")]

    def tell(run: NotebookRun) -> None:
        tqdm.write(f"{'ok    ' if run.status == 'ok' else 'FAILED'} {run.name:<20} {run.seconds:7.1f} s  "
                   f"{run.cells} code cells{'  ' + run.error if run.error else ''}")  # above the bars
        sys.stdout.flush()

    runs = run_tutorial(notebooks, out, profile=args.profile, device=args.device, only=only, seed=args.seed,
                        timeout=args.timeout, progress=not args.quiet, on_done=tell)
    failed = [run.name for run in runs if run.status != "ok"]
    print(f"\n{len(runs) - len(failed)} of {len(runs)} notebooks ran through in {sum(r.seconds for r in runs):.0f} s"
          + (f"; failed: {', '.join(failed)}" if failed else ""))
    print(f"open {out.resolve() / 'index.html'}")
    return int(bool(failed))
