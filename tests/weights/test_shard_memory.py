"""Memory is bounded by the tiles of the workers, not by the model, a rank or the largest tensor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3_port import DeepseekV3Config, PortError
from dsv3_port.weights.synthetic import random_codes_checkpoint, real_size_config

ALLOWED = 64 << 20  # anonymous memory above what the process has before it begins
WATCHED = """
import json, sys, threading
from pathlib import Path
from dsv3_port import PortPlan
from dsv3_port.weights import sharding
from dsv3_port.weights.sharding import source as stream

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10

stream.TILE = 1 << 20
begin, peak, ended = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not ended.wait(0.002):
        peak = max(peak, anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
plan = PortPlan.full().replace(quant=sys.argv[4])
report = sharding.shard_checkpoint(sys.argv[1], sys.argv[2], int(sys.argv[3]), jobs=2, plan=plan)
ended.set()
watcher.join()
print(json.dumps([peak - begin, report.bytes_read, report.bytes_per_rank, report.estimate.memory_bytes - begin]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is read from /proc")
@pytest.mark.parametrize("world,quant", [(1, "none"), (8, "none"), (1, "w8a8"), (8, "w8a8")])
def test_a_checkpoint_several_times_the_allowed_memory(world, quant, tmp_path):
    """250 MB of FP8 and bfloat16, half of it in one tensor twice the allowed memory; 410 MB a rank
    where world is 1, less where its matrices are int8."""
    config = DeepseekV3Config.preset("small").replace(
        num_hidden_layers=2,
        hidden_size=2048,
        vocab_size=32768,
        moe_intermediate_size=512,
        n_routed_experts=32,
        intermediate_size=4096,
    )
    source = random_codes_checkpoint(tmp_path / "source", config)
    run = subprocess.run(
        [sys.executable, "-c", WATCHED, str(source), str(tmp_path / "out"), str(world), quant],
        check=True,
        capture_output=True,
        text=True,
    )
    grown, read, a_rank, predicted = json.loads(run.stdout)
    assert read > 3.5 * ALLOWED and a_rank * world > (5 if quant == "none" else 4) * ALLOWED
    assert grown < ALLOWED, f"{grown >> 20} MiB for {read >> 20} MiB of source"
    assert grown < predicted, "the estimate of a dry run is an upper bound"


def test_tables_stay_small_for_the_whole_model():
    """All ranks of the 671B model from one table: 92,000 published tensors, 64 ranks."""
    import tracemalloc

    from dsv3_port import PortPlan
    from dsv3_port.parallel import TensorParallel
    from dsv3_port.weights.layout import targets
    from dsv3_port.weights.sharding import DTYPES
    from dsv3_port.weights.sharding.plan import RankPlan

    config = DeepseekV3Config.preset("v3-671b")
    plan = PortPlan.with_steps(
        "tensor_parallel"
    )  # the loop over experts: one target for each of their matrices
    tracemalloc.start()
    try:
        rank_plan = RankPlan(
            list(targets(config, plan, TensorParallel(0, 64))), DTYPES["bf16"], 4 << 30
        )
        table = rank_plan.by_source()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) > 45_000 and held < 100 << 20
    assert max(config.vocab_size * config.hidden_size * 2, rank_plan.nbytes) > 1 << 30, (
        "neither fits the bound whole"
    )


def test_real_size_config_has_the_published_widths():
    config = real_size_config(32)
    assert (config.hidden_size, config.moe_intermediate_size, config.n_routed_experts) == (
        7168,
        2048,
        32,
    )
    assert real_size_config(2).n_group == 1
    with pytest.raises(PortError, match="power of two"):
        real_size_config(12)
