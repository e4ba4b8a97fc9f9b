"""`dsv3-port compare`: find the first layer in which two models differ."""

from __future__ import annotations

import argparse

from .words import DEVICE_HELP, DTYPE_HELP, PLAN_HELP, check_positive, parse_plan


def arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("a", help="checkpoint folder")
    p.add_argument(
        "b", nargs="?", help="another one, or the word transformers (default: the same folder)"
    )
    p.add_argument("--plan-a", default="full", help=PLAN_HELP)
    p.add_argument("--plan-b", default="upstream", help="likewise for b (default: %(default)s)")
    p.add_argument("--device", default="auto", help=DEVICE_HELP)
    p.add_argument("--dtype", help=DTYPE_HELP)
    for which in "ab":
        p.add_argument(f"--device-{which}", metavar="DEVICE", help=f"of {which} alone")
        p.add_argument(f"--dtype-{which}", metavar="DTYPE", help=f"of {which} alone")
        p.add_argument(
            f"--ranks-{which}",
            type=int,
            default=0,
            metavar="N",
            help=f"run {which} over N ranks (default: as its folder was split, else 1)",
        )
    p.add_argument(
        "--prompt", action="append", help="text to run through both (default: random tokens)"
    )
    p.add_argument(
        "--tokens",
        type=int,
        default=24,
        help="random tokens, two rows of them (default: %(default)s)",
    )
    p.add_argument(
        "--rtol", type=float, help="largest difference over the largest value (default: by dtype)"
    )
    p.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    import torch

    check_positive(args, "tokens")
    from ..check.sides import PEER, Side, compare_sides, default_dtype
    from ..config import DeepseekV3Config
    from ..engine.device import pick_device
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
