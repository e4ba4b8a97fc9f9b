"""What each sub-command prints. The work is done in the rooms below and imported only when its command runs.

A command returns its exit code: 0, or 1 where it ran and the answer is "no" (a notebook failed, models differ, a check
of doctor failed).
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .errors import PortError
from .steps import STEPS, PortPlan, step

SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "float8_e4m3fn"}


def parse_plan(text: str) -> PortPlan:
    """`full`, `upstream`, `upto:ID` (a rung of the ladder) or step ids separated by commas."""
    if text == "full":
        return PortPlan.full()
    if text == "upstream":
        return PortPlan.upstream()
    if text.startswith("upto:"):
        return PortPlan.upto(text.removeprefix("upto:"))
    return PortPlan.with_steps(*(step(word.strip()).id for word in text.split(",")))


def parse_ints(text: str, what: str) -> list[int]:
    """`8,16` or `0-7`, or both mixed, as whole numbers."""
    found: list[int] = []
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdecimal() or dash and not last.isdecimal():
            raise PortError(f"{what}: {text!r} is not a list of whole numbers such as 8,16 or 0-7")
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    if not found:
        raise PortError(f"{what}: {text!r} is an empty range; write the smaller number first")
    return found


def parse_gib(text: str) -> float:
    """`64GiB`, `64` (GiB) or `64GB` (10^9 bytes), as GiB."""
    number, factor = text.strip(), 1.0
    for unit, size in (("gib", 1.0), ("gb", 1e9 / 2**30), ("g", 1.0)):
        if number.lower().endswith(unit):
            number, factor = number[: -len(unit)], size
            break
    try:
        value = float(number) * factor
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise PortError(f"--hbm: {text!r} is not a size such as 64GiB")
    return value


def long_dtype(name: str) -> str:
    return SHORT_DTYPES.get(name, name)


def read_prompts(args: argparse.Namespace) -> list[Any]:
    """--prompt texts, or a JSON list of texts or chat messages, or a dict of such lists (data/prompts.json)."""
    if args.prompt:
        return list(args.prompt)
    if not args.prompts:
        return ["Once upon a time"]
    file = Path(args.prompts)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PortError(f"{file}: not readable as a JSON list of prompts: {error}") from error
    if isinstance(found, dict):
        found = found.get("chat" if args.chat else "completion")
    if not isinstance(found, list) or not found or not all(isinstance(p, (str, list)) for p in found):
        raise PortError(f"{file}: must hold a list of prompts, each a text or a list of chat messages")
    return found


# ---- commands -------------------------------------------------------------------------------------------------------

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
        rows = [(s.number, s.id, f"{s.title} · {s.title_zh}", s.notebook, s.saves) for s in STEPS]
        print(tabulate(rows, ("", "step", "title", "notebook", "saves on an NPU"), disable_numparse=True))
        return 0
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
    if settings.world_size > 1:
        raise PortError(f"WORLD_SIZE is {settings.world_size}, and `infer` runs one process: set it to 1, or run ranks "
                        "with dsv3_port.parallel.run_ranks as notebook 09 does")
    chosen = parse_plan(args.plan).replace(graph=settings.graph)
    args.chat = chat = args.chat or settings.tokenizer_mode == "chat"
    prompts = read_prompts(args)
    from .engine.runner import generate, load_model
    from .engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(settings.model_dir)
    model = load_model(settings.model_dir, chosen, args.device, args.dtype, progress=True)
    done = []
    for at in range(0, len(prompts), settings.batch_size):
        batch = prompts[at : at + settings.batch_size]
        alone = len(batch) == 1
        if alone:  # text as it comes; of several rows it would be interleaved
            print(f"{_shown(batch[0])}", end="", flush=True)
        found = generate(model, tokenizer, batch, settings.max_new_tokens, temperature=args.temperature,
                         seed=args.seed, chat=chat,
                         pad_to=settings.input_max_len if chosen.graph != "eager" else None,
                         on_token=(lambda row, text: print(text, end="", flush=True)) if alone else None)
        for g in found if not alone else ():
            print(f"{_shown(g.prompt)}{g.text}")
        g = found[0]
        pace = (f"{g.seconds_per_token * 1e3:.2f} ms per output token, {len(batch) / g.seconds_per_token:.1f} tokens/s"
                if g.seconds_per_token else "no further token")
        print(f"\n[{sum(x.prompt_tokens for x in found)} prompt tokens, {sum(len(x.token_ids) for x in found)} new; "
              f"first token after {g.seconds_first * 1e3:.1f} ms; {pace}; batch {len(batch)}, {model.device}]\n")
        done += found
    if args.json:
        _write_json(args.json, [asdict(g) for g in done])
    return 0


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
    from .lab.tutorial import find_notebooks, run_tutorial

    notebooks = Path(args.notebooks) if args.notebooks else find_notebooks()
    out = Path(args.out) if args.out else notebooks.resolve().parent / "out"
    only = [word.strip() for text in args.only or () for word in text.split(",")]

    def tell(run: Any) -> None:
        print(f"{'ok    ' if run.status == 'ok' else 'FAILED'} {run.name:<20} {run.seconds:7.1f} s  "
              f"{run.cells} code cells{'  ' + run.error if run.error else ''}", flush=True)

    runs = run_tutorial(notebooks, out, profile=args.profile, device=args.device, only=only, seed=args.seed,
                        timeout=args.timeout, progress=not args.quiet, on_done=tell)
    failed = [run.name for run in runs if run.status != "ok"]
    print(f"\n{len(runs) - len(failed)} of {len(runs)} notebooks ran through in {sum(r.seconds for r in runs):.0f} s"
          + (f"; failed: {', '.join(failed)}" if failed else ""))
    print(f"open {out.resolve() / 'index.html'}")
    return int(bool(failed))
