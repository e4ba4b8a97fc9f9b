"""weight_format 'nz' off the NPU: the matrices are laid out [K, N], and no bit of a result changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import PortError, PortPlan, load_model
from dsv3_port.engine.launch import run_ranks
from dsv3_port.engine.loading import with_plan
from dsv3_port.model.weight_format import as_published, matrices
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights.int8 import stored_as_int8
from dsv3_port.weights.layout import targets
from dsv3_port.weights.sharding import shard_checkpoint
from tests.model.int8_calls import held_to_the_definition
from tests.model.test_int8 import FULL, PLANS, TINY, run


def nz(plan: PortPlan) -> PortPlan:
    return plan.replace(weight_format="nz")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PLANS)
def test_logits_are_those_of_nd_bit_for_bit(name, dtype) -> None:
    model = load_model(TINY, nz(PLANS[name]), "cpu", dtype)
    with held_to_the_definition() as seen:
        found = run(model)
    assert seen["Linear"]
    assert torch.equal(found, run(load_model(TINY, PLANS[name], "cpu", dtype)))


@pytest.mark.parametrize("name", ["full", "production", "upstream"])
def test_every_int8_matrix_is_turned_and_nothing_else(name) -> None:
    """Linear layers and experts; W_UK, W_UV and what keeps its dtype lie as ever."""
    plain, turned = (load_model(TINY, p, "cpu", "bfloat16") for p in (PLANS[name], nz(PLANS[name])))
    names = {path for *_, path in matrices(turned)}
    sources = {t.name: t.pieces[0].source for t in targets(plain.config, plain.plan) if t.int8}
    assert names == set(sources) and all(stored_as_int8(s) for s in sources.values())
    assert not [n for n in names if "kv_b_proj" in n or "scale" in n or "eh_proj" in n]
    held, published = dict(turned.named_parameters()), as_published(turned)
    for path, want in plain.named_parameters():
        assert held[path].is_contiguous() and held[path].dtype == want.dtype
        assert torch.equal(published[path], want)
        assert torch.equal(held[path], want.mT if path in names else want)


def test_plans_of_two_formats_share_no_weights() -> None:
    model = load_model(TINY, nz(FULL), "cpu", "bfloat16")
    twin = with_plan(model, nz(FULL).plus("paged_cache"))
    held = dict(model.named_parameters())
    assert all(p.data_ptr() == held[n].data_ptr() for n, p in twin.named_parameters())
    assert torch.equal(
        run(twin), run(load_model(TINY, FULL.plus("paged_cache"), "cpu", "bfloat16"))
    )
    with pytest.raises(PortError, match="do not share weights .weight_format 'nd' and 'nz'"):
        with_plan(model, FULL)


def on_a_rank(parallel: TensorParallel, path: str, plan: PortPlan) -> Tensor:
    return run(load_model(path, plan, "cpu", "bfloat16", parallel))


def test_two_ranks_and_a_folder_that_was_split(tmp_path) -> None:
    """What is on disk does not depend on it: a split by a plan with nz is byte for byte one without."""
    shard_checkpoint(TINY, tmp_path / "nd", 2, plan=FULL)
    shard_checkpoint(TINY, tmp_path / "nz", 2, plan=nz(FULL))
    files = sorted(p.relative_to(tmp_path / "nd") for p in (tmp_path / "nd").rglob("*.safetensors"))
    assert len(files) >= 2
    for file in files:
        assert (tmp_path / "nd" / file).read_bytes() == (tmp_path / "nz" / file).read_bytes()
    layouts: list[Any] = [
        json.loads((tmp_path / n / "manifest.json").read_text())["layout"] for n in ("nd", "nz")
    ]
    assert layouts[0] == layouts[1]
    want = run_ranks(on_a_rank, 2, str(tmp_path / "nd"), FULL)
    for folder in (tmp_path / "nz", Path(TINY)):
        found = run_ranks(on_a_rank, 2, str(folder), nz(FULL))
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_what_nz_cannot_be() -> None:
    with pytest.raises(
        PortError, match="weight_format 'nz' is for int8 matrices: it needs quant 'w8a8'"
    ):
        PortPlan.full().replace(weight_format="nz")
    with pytest.raises(PortError, match="PortPlan.weight_format is 'fractal'"):
        FULL.replace(weight_format="fractal")
