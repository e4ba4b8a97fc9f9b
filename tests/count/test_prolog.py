"""What npu_mla_prolog_v3 saves a cached step, counted: launches by a run with values, products and bytes
on meta."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from dsv3_port.config import DeepseekV3Config
from dsv3_port.count.operators import count_ops
from dsv3_port.count.step_work import StepWork, step_work
from dsv3_port.plan import PortPlan
from tests.random_models import CONFIG, random_model

PAGED = PortPlan.upto("9")
PROLOG = PAGED.replace(mla_prolog=True)
# nothing has to be widened, as in DeepSeek-V3
WIDE = CONFIG.replace(kv_lora_rank=512, qk_rope_head_dim=64)
V3 = DeepseekV3Config.preset("v3-671b")


def launches(plan: PortPlan) -> Counter[str]:
    model = random_model(plan, WIDE)
    cache = model.new_cache(2, 20)
    model(torch.full((2, 9), 3), cache=cache)
    return Counter(count_ops(lambda: model(torch.full((2, 1), 3), cache=cache)))


def test_launches_of_a_layer() -> None:
    """Gone: three products, W_UK's, two norms with rotation and write, two rotations or what they are
    made of. New: the one operator."""
    before, after = launches(PAGED), launches(PROLOG)
    layers = WIDE.num_hidden_layers
    gone, new = before - after, after - before
    print({name: n / layers for name, n in gone.items()}, dict(new))
    assert new == {"npu_mla_prolog_v3": layers}
    for name in ("npu_rms_norm", "npu_kv_rmsnorm_rope_cache_v2", "npu_transpose_batchmatmul"):
        assert gone[name] == layers, name
    assert gone["aten.mm"] == 3 * layers
    assert sum(gone.values()) >= 8 * layers


@pytest.mark.parametrize("batch", [1, 8])
def test_products_and_bytes_are_the_same(batch: int) -> None:
    """It computes what the single operators compute, and reads the same weights."""

    def attention(work: StepWork) -> tuple[int, int]:
        found = [w for w in work.work if w.part == "attention"]
        return sum(w.flops * w.times for w in found), sum(w.nbytes * w.times for w in found)

    before, after = (
        step_work(V3, plan, world_size=16, batch=batch, context=256) for plan in (PAGED, PROLOG)
    )
    (flops, read), (flops_fused, read_fused) = attention(before), attention(after)
    assert flops_fused == flops and 0.9 * read < read_fused < read
    assert after.launches < before.launches
