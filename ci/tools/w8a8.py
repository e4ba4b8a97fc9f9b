"""What W8A8 costs the embedded model on text that it was not trained on: `python ci/tools/w8a8.py`
prints it, `--write` keeps it in data/recorded/w8a8.json, from which `ci/tools/readme.py` makes the
table of docs/production.md.

Eight batches of 4 x 512 tokens of data/train_tiny, seed 2, as training measured the model on. The
forms: the published FP8 weights in float32; their int8 weights with inputs as they are; W8A8; W8A8 whose
every position is a step over a paged cache, of float32 and of int8 (C8), with scales from 4 x 512 other tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data" / "train_tiny"))

from dsv3_port import PortPlan, load_model, load_tokenizer
from dsv3_port.check.quality import Quality, quality
from dsv3_port.engine.calibrate import calibrate
from dsv3_port.engine.loading import with_plan
from dsv3_port.model.c8 import set_kv_scales
from dsv3_port.weights.sharding import rank_folder, shard_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "data" / "tiny-dsv3"
RECORD = ROOT / "data" / "recorded" / "w8a8.json"
HELD_OUT_SEED, BATCH, LENGTH, BATCHES = 2, 4, 512, 8
FLOAT = PortPlan.full().minus("last_token_head")
FORMS = {"int8 weights": FLOAT, "W8A8": FLOAT.replace(quant="w8a8")}
STEPS = FLOAT.plus("paged_cache").replace(quant="w8a8", mla_prolog=True)
CACHED = {
    "W8A8, token by token": STEPS,
    "W8A8, int8 cache": STEPS.replace(kv_cache_dtype="int8"),
}
CALIBRATION_SEED = 3


def held_out(count: int = BATCHES, seed: int = HELD_OUT_SEED) -> list[torch.Tensor]:
    from text import batches

    return list(islice(batches(load_tokenizer(TINY), seed, BATCH, LENGTH), count))


def measured(count: int = BATCHES) -> dict[str, Quality]:
    """Form -> what it costs beside the published weights in float32."""
    text, reference = held_out(count), load_model(TINY, FLOAT, "cpu", "float32")
    whole = PortPlan.upstream().replace(quant="w8a8")
    with TemporaryDirectory() as folder:
        shard_checkpoint(TINY, folder, 1, plan=whole)
        made = Path(folder) / rank_folder(0, 1)  # a checkpoint of its own
        found = {
            name: quality(reference, load_model(made, plan, "cpu", "float32"), text)
            for name, plan in FORMS.items()
        }
        base = load_model(made, STEPS, "cpu", "float32")
    scales = calibrate(base, held_out(1, CALIBRATION_SEED)[0])
    for name, plan in CACHED.items():
        model = with_plan(base, plan)
        if plan.kv_cache_dtype == "int8":
            set_kv_scales(model, scales)
        found[name] = quality(reference, model, [torch.cat(text)], cached=True)
    return found


def main(argv: list[str]) -> int:
    p = argparse.ArgumentParser(description="What W8A8 costs the embedded model.")
    p.add_argument("--write", action="store_true", help=f"keep it in {RECORD.name}")
    args = p.parse_args(argv)
    text = json.dumps({n: q.to_dict() for n, q in measured().items()}, indent=1) + "\n"
    if args.write:
        RECORD.write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
