"""`dsv3-port plan`: memory per card, times by a forecast or by measured kernels, or the steps."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ..config import PRESETS, DeepseekV3Config
from ..errors import PortError
from ..messages import N_, told, tr
from ..steps import PRODUCTION, STEPS
from .words import PLAN_HELP, check_positive, long_dtype, parse_gib, parse_ints, parse_plan

if TYPE_CHECKING:
    from ..forecast.planner import Forecast

# why a number of cards is enough or not (forecast/planner.py, forecast/what_if.py), for the catalogue
REASONS = (
    N_("{0} of {1} GiB"),
    N_("needs {0} GiB, {1} are usable ({2} of {3} kept free)"),
    N_("does not fit: needs {0} GiB, {1} are usable ({2} of {3} kept free)"),
    N_(
        "does not fit: needs {0} GiB, {1} are usable ({2} of {3} kept free); {4} ranks are the fewest that do"
    ),
    N_(
        "the model cannot be cut over {0} ranks; it can over {1} (heads, widths and vocabulary must all divide)"
    ),
    N_("{0} cards are not a whole number of copies on {1} ranks"),
)


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--steps", action="store_true", help="print the steps of the port instead")
    p.add_argument(
        "--config", default="v3-671b", help="preset or checkpoint folder (default: %(default)s)"
    )
    p.add_argument(
        "--world-size",
        default="8,16,32,64",
        metavar="N,N",
        help="numbers of cards (default: %(default)s)",
    )
    p.add_argument("--hbm", default="64GiB", help="memory of a card (default: %(default)s)")
    p.add_argument(
        "--dtype",
        default="bf16",
        metavar="D,D",
        help="bf16, fp16, fp32, fp8, int8 (default: %(default)s)",
    )
    p.add_argument(
        "--batch", type=int, default=1, help="sequences in the KV cache (default: %(default)s)"
    )
    p.add_argument(
        "--seq-len", type=int, default=4096, help="positions of each (default: %(default)s)"
    )
    p.add_argument("--plan", default="full", help=PLAN_HELP)
    p.add_argument(
        "--forecast",
        metavar="CARD",
        nargs="?",
        const="a3",
        help="times instead: the roofline FORECAST of "
        "each step of the ladder in bfloat16 on a2, a2-280t or a3 (default), as ranges",
    )
    p.add_argument(
        "--prefill", type=int, default=1024, help="a forecast's prompt (default: %(default)s)"
    )
    p.add_argument(
        "--what-if",
        action="store_true",
        help="decode times instead, composed from kernels that others measured: each layout's memory, "
        "step with its band, what binds, and the step to do next",
    )
    p.add_argument("--cards", type=int, help="with --what-if: how many cards there are")
    p.add_argument(
        "--kernels",
        metavar="FILE",
        help="with --what-if: your own card's times, as `npu-kernels import --out FILE` wrote them",
    )
    p.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    if args.steps:
        listed = [
            (s.number, s.id, told(s.title), s.notebook, told(s.saves))
            for s in (*STEPS, *PRODUCTION)
        ]
        head = ("", tr("step"), tr("title"), tr("notebook"), tr("saves on an NPU"))
        print(tabulate(listed, head, disable_numparse=True))
        return 0
    check_positive(args, "batch", "seq_len")
    is_preset = args.config in PRESETS
    if not is_preset and not Path(args.config).is_dir():
        raise PortError(
            f"--config: {args.config!r} is neither a checkpoint folder nor one of {', '.join(PRESETS)}"
        )
    read = DeepseekV3Config.preset if is_preset else DeepseekV3Config.from_pretrained
    config = read(args.config)
    if not (args.what_if or args.forecast):
        _memory(args, config)
        return 0
    (_what_if if args.what_if else _times)(args, config)
    return 0


def _what_if(args: argparse.Namespace, config: DeepseekV3Config) -> None:
    """Decode by measured kernels: each layout's memory, time, what binds, and the next step."""
    from ..forecast import own_kernels
    from ..forecast.compose import SENTENCE
    from ..forecast.kernels import CARD, label
    from ..forecast.what_if import layouts, suggested

    if args.cards is not None:
        check_positive(args, "cards")
    model = own_kernels.model(own_kernels.load(args.kernels)) if args.kernels else None
    found = layouts(
        config,
        parse_ints(args.world_size, "--world-size"),
        cards=args.cards,
        hbm_gib=parse_gib(args.hbm),
        batch=args.batch,
        context=args.seq_len,
        plan=parse_plan(args.plan),
        model=model,
    )
    best = suggested(found)
    if args.json:
        rows = [x.to_dict() | {"suggested": x is best} for x in found]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    what = tr("decode of {batch} sequences with {n} cached, bfloat16, plan {plan}: {what}")
    sizes = {"batch": args.batch, "n": args.seq_len, "plan": args.plan}
    print(what.format(what=told(SENTENCE), **sizes))
    cells = [[told(str(v)) for v in x.row().values()] for x in found]
    print(tabulate(cells, [told(k) for k in found[0].row()], disable_numparse=True))
    said = tr("no missing step shortens decode by more than 3 %")
    if best.decode and best.after:
        said = tr("next step: {step}, ~{now:.0f} to ~{then:.0f} ms composed")
        now, then = best.decode.ms, best.after.ms
        said = said.format(step=best.next_step, now=now, then=then)
    copies = tr(", {n} copies").format(n=best.copies) if best.copies > 1 else ""
    line = tr("suggested: {n} ranks{copies}; {said}")
    print(f"\n{line.format(n=best.world_size, copies=copies, said=said)}\n")
    own = tr("Kernels: {device}, {file}; published ones of {card} where it has none.")
    shown = own.format(device=model.device, file=args.kernels, card=CARD) if model else label(CARD)
    print(shown)
    print(tr("The latency of collectives is in no source and not in the times."))


def _memory(args: argparse.Namespace, config: DeepseekV3Config) -> None:
    """Bytes per card for each number of cards and dtype, and how many cards are enough."""
    from ..forecast.planner import GIB, forecast, smallest_world, world_sizes

    hbm, dtypes = parse_gib(args.hbm), [long_dtype(d.strip()) for d in args.dtype.split(",")]
    worlds, plan = parse_ints(args.world_size, "--world-size"), parse_plan(args.plan)
    rows = forecast(config, worlds, hbm, dtypes, args.batch, args.seq_len, plan)
    if args.json:
        print(json.dumps([asdict(r) for r in rows], indent=1))
        return

    parts = list(dict.fromkeys(name for r in rows for name in r.weights_bytes))

    def cells(r: Forecast) -> tuple[Any, ...]:
        sizes = [r.weights_bytes.get(p, 0) for p in parts]
        sizes += [r.kv_latent_bytes, r.kv_expanded_bytes, r.total_bytes]
        fits = tr("yes") if r.fits else tr("no")
        return (r.world_size, r.dtype, *(f"{s / GIB:.2f}" for s in sizes), fits, told(r.reason))

    what = tr("GiB a card: {config}, batch {batch}, {n} cached positions, plan {plan}")
    print(what.format(config=args.config, batch=args.batch, n=args.seq_len, plan=args.plan))
    latent, expanded = tr("KV latent"), tr("KV expanded")
    fit = (tr("total"), tr("fits the card"), tr("why"))
    head = (tr("cards"), "dtype", *map(told, parts), latent, expanded, *fit)
    print(tabulate(map(cells, rows), head, stralign="right", disable_numparse=True))
    divide = ", ".join(map(str, world_sizes(config)))
    for dtype in dtypes:
        least = smallest_world(config, hbm, dtype, args.batch, args.seq_len, plan)
        line = tr("{dtype}: no number of cards is enough; the model can be cut over {divide}")
        if least:
            line = tr("{dtype}: {n} cards of {hbm} are enough; the model can be cut over {divide}")
        print(line.format(dtype=dtype, n=least, hbm=args.hbm, divide=divide))


def _times(args: argparse.Namespace, config: DeepseekV3Config) -> None:
    """The roofline forecast of every rung, a column for each number of cards and phase."""
    from ..forecast.checks import assumptions_text
    from ..forecast.planner import cannot_cut, forecast, world_sizes
    from ..forecast.roofline import CARDS, forecast_ladder
    from ..steps import step

    check_positive(args, "prefill")
    worlds = parse_ints(args.world_size, "--world-size")
    divide = world_sizes(config)
    for world in worlds:
        if world not in divide:
            raise PortError(f"--world-size: {cannot_cut(world, divide)}")
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
        return
    rungs = list(dict.fromkeys(f.rung for f in found[worlds[0]]))
    head, ends = tr("{phase}, {n} ranks"), tr("{a:.1f} to {b:.1f}")
    heads = [head.format(phase=phase, n=w) for phase in ("prefill", "decode") for w in worlds]
    rows = [
        (
            step(rung).number,
            told(step(rung).title),
            *(
                ends.format(a=f.total.low * 1e3, b=f.total.high * 1e3)
                for phase in ("prefill", "decode")
                for w in worlds
                for f in found[w]
                if f.rung == rung and f.phase == phase
            ),
        )
        for rung in rungs
    ]
    card = CARDS[args.forecast]
    what = tr(
        "FORECAST, nothing measured: ms a step of {config} in bfloat16 on {card}; prefill of {prompt} tokens, "
        "decode of batch {batch} with {n} cached"
    )
    sizes = {"prompt": args.prefill, "batch": args.batch, "n": args.seq_len}
    print(what.format(config=args.config, card=told(card.name), **sizes))
    print(tabulate(rows, ("", tr("step"), *heads), stralign="right", disable_numparse=True))
    print(tr("Assumed: {assumed}.").format(assumed=assumptions_text()))
    print(tr("Rates: {source}.").format(source=told(card.source)))
    enough, little = tr("{n} ranks: fits, {reason}"), tr("{n} ranks: does not fit: {reason}")
    for f in forecast(config, worlds, card.memory_gib, batch=args.batch, seq_len=args.seq_len):
        said = enough if f.fits else little
        print(said.format(n=f.world_size, reason=told(f.reason)))
