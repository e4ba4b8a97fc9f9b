"""Operators per layer, recorded for the forecast: still what torchair converts.

To write the file anew: python -m tests.hostnpu.inside.check_layers
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch

from dsv3_port import STEPS, DeepseekV3Config, PortPlan, hostnpu, load_model
from dsv3_port.count.step_work import step_work
from dsv3_port.engine.graph import graph_blockers
from dsv3_port.ge import census as npu_graphs
from dsv3_port.ge import layers as ge_layers
from dsv3_port.hostnpu import kernels
from dsv3_port.paths import recorded_file
from dsv3_port.weights.synthetic import synthetic_checkpoint

TINY = Path(__file__).parents[3] / "data" / "tiny-dsv3"
CONFIG = DeepseekV3Config.preset("tiny").replace(num_nextn_predict_layers=0, vocab_size=64)


def test_another_model_has_what_the_record_says(tmp_path: Path) -> None:
    """Two layers of each kind: none of the models that the record was made from."""
    for phase, counts in census(tmp_path, PortPlan.full(), 2, 2).items():
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


def census(folder: Path, plan: PortPlan, dense: int, moe: int) -> dict[str, dict[str, int]]:
    """Both phases of a small model of random weights with so many layers of each kind."""
    config = CONFIG.replace(num_hidden_layers=dense + moe, first_k_dense_replace=dense)
    return npu_graphs.ge_census(synthetic_checkpoint(config, cache_dir=folder), plan, layers=None)


def layers_of(folder: Path, plan: PortPlan) -> dict[str, ge_layers.Layers]:
    models = {key: census(folder, plan, *key) for key in ((1, 1), (2, 1), (1, 2))}
    return {
        phase: ge_layers.by_difference({key: counts[phase] for key, counts in models.items()})
        for phase in ("prefill", "decode")
    }


def write() -> None:
    hostnpu.enable()
    plans = {s.id: PortPlan.upto(s.id) for s in STEPS if s.field != "graph"}
    with tempfile.TemporaryDirectory() as folder:
        rungs = {
            name: layers_of(Path(folder), plan)
            for name, plan in plans.items()
            if not graph_blockers(plan)
        }
    text = json.dumps({"torch_npu": hostnpu.status().torch_npu, "rungs": rungs}, indent=1)
    recorded_file(ge_layers.RECORDED).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
