"""Operators per layer, recorded for the forecast: still what torchair converts.

To write the file anew: python -m tests.hostnpu.inside.check_layers
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from dsv3_port import DeepseekV3Config, PortPlan, hostnpu, load_model
from dsv3_port.hostnpu import kernels
from dsv3_port.lab import ge_layers, npu_graphs
from dsv3_port.lab.step_work import step_work
from dsv3_port.weights.synthetic import synthetic_checkpoint

TINY = Path(__file__).parents[3] / "data" / "tiny-dsv3"
CONFIG = DeepseekV3Config.preset("tiny").replace(num_nextn_predict_layers=0, vocab_size=64)


def test_another_model_has_what_the_record_says(tmp_path: Path) -> None:
    """Two layers of each kind: none of the models that the record was made from."""
    config = CONFIG.replace(num_hidden_layers=4, first_k_dense_replace=2)
    found = npu_graphs.ge_census(synthetic_checkpoint(config, cache_dir=tmp_path), PortPlan.full())
    for phase, counts in found.items():
        assert ge_layers.operators("last_token_head", phase, 2, 2) == counts


@pytest.mark.parametrize("rung", ["merged_mlp", "last_token_head"])
def test_eager_launches_are_those_of_the_forecast(rung: str) -> None:
    """A few copies more or fewer: torch_npu makes some of its own."""
    plan = PortPlan.upto(rung).minus("tensor_parallel")
    model = load_model(TINY, plan, "npu", "bfloat16")
    cache = model.new_cache(2, 14)
    ids = torch.zeros(2, 12, dtype=torch.int64, device="npu")
    for tokens, context in ((12, 12), (1, 14)):
        before = kernels.calls["kernel"]
        model(ids[:, :tokens].contiguous(), cache=cache)
        ran = kernels.calls["kernel"] - before
        counted = step_work(model.config, plan, batch=2, tokens=tokens, context=context).launches
        assert abs(ran - counted) < 0.03 * ran


def write() -> None:
    hostnpu.enable()
    with tempfile.TemporaryDirectory() as folder:
        rungs = {name: npu_graphs.layer_census(plan, CONFIG, folder) for name, plan in npu_graphs.rungs().items()}
    text = json.dumps({"torch_npu": hostnpu.status().torch_npu, "rungs": rungs}, indent=1)
    ge_layers.RECORDED.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
