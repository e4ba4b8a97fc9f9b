"""The whole published layout at reduced width, from FP8 through int8 to text: `python ci/tools/whole_int8.py
--work DIR` (exit code 1 where anything differs).

Every tensor of DeepSeek-V3's checkpoint by its name (61 layers, 256 experts, the MTP layer: 91,991
entries), random and narrow, in FP8 under DIR. For one rank and for two, `shard --quant w8a8` writes it in
both formats, and what each folder gives in greedy decoding, logits to the last bit, must be what int8
straight from the published FP8 gives on as many ranks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dsv3_port import DeepseekV3Config, PortPlan, load_model
from dsv3_port.engine.launch import run_ranks
from dsv3_port.parallel import SINGLE, TensorParallel
from dsv3_port.weights.int8_formats import FORMATS
from dsv3_port.weights.sharding import shard_checkpoint
from dsv3_port.weights.synthetic import synthetic_checkpoint

PLAN = PortPlan.full().replace(quant="w8a8")
ROWS, PROMPT, NEW = 2, 8, 6
Text = tuple[list[list[int]], str]  # greedy tokens of each row, a hash of all logits


def narrow(layers: int, experts: int) -> DeepseekV3Config:
    groups = min(8, experts // 2)
    return DeepseekV3Config.preset("v3-671b").replace(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=32,
        num_hidden_layers=layers,
        first_k_dense_replace=min(3, layers - 1),
        num_attention_heads=4,
        kv_lora_rank=32,
        q_lora_rank=48,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        n_routed_experts=experts,
        n_group=groups,
        topk_group=max(1, groups // 2),
        num_experts_per_tok=min(8, experts // 2),
    )


def text(parallel: TensorParallel, folder: str) -> Text:
    """Of one rank."""
    model = load_model(folder, PLAN, "cpu", "bfloat16", parallel)
    ids = torch.randint(3, 1000, (ROWS, PROMPT), generator=torch.Generator().manual_seed(0))
    cache, found, seen = model.new_cache(ROWS, PROMPT + NEW), [], hashlib.sha256()
    for _ in range(NEW):
        logits = model(ids, cache=cache)[:, -1]
        assert logits.isfinite().all()
        seen.update(logits.float().numpy().tobytes())
        ids = logits.argmax(-1, keepdim=True)
        found.append(ids)
    return torch.cat(found, 1).tolist(), seen.hexdigest()


def of_ranks(world: int, folder: Path) -> list[Text]:
    if world == 1:
        return [text(SINGLE, str(folder))]
    return list(run_ranks(text, world, str(folder)))


def differing(source: Path, world: int, work: Path) -> list[str]:
    """The formats whose folders give another text than `source` itself, or whose ranks disagree."""
    want, found = of_ranks(world, source), []
    for form in FORMATS:
        with TemporaryDirectory(dir=work) as folder:
            report = shard_checkpoint(source, folder, world, plan=PLAN, quant_format=form)
            got = of_ranks(world, Path(folder))
        same = got == want and got == got[:1] * world
        found += [] if same else [form]
        said = "the text and the logits" if same else "NOT the text or the logits"
        print(f"{report.summary()}\n{world} rank(s), {form}: {said} of int8 straight from FP8")
    return found


def main(argv: list[str]) -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    p.add_argument(
        "--work", type=Path, required=True, help="folder for the checkpoint and its splits"
    )
    p.add_argument("--layers", type=int, default=61)
    p.add_argument("--experts", type=int, default=256)
    p.add_argument("--ranks", default="1,2", help="world sizes (default: %(default)s)")
    args = p.parse_args(argv)
    source = synthetic_checkpoint(narrow(args.layers, args.experts), cache_dir=args.work)
    index = json.loads((source / "model.safetensors.index.json").read_text(encoding="utf-8"))
    print(f"{len(index['weight_map']):,} entries in FP8 and BF16")
    worlds = [int(word) for word in args.ranks.split(",")]
    wrong = [f for world in worlds for f in differing(source, world, args.work)]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
