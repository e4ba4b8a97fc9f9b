"""Forecasts against known numbers of the published model and against what a built model really
holds."""

from __future__ import annotations

import pytest

from dsv3_port.config import DeepseekV3Config
from dsv3_port.errors import PortError
from dsv3_port.forecast.planner import (
    active_params,
    decode_bytes,
    forecast,
    kv_bytes_per_token,
    smallest_world,
    total_params,
    weight_bytes,
    world_sizes,
)
from dsv3_port.model.decoder import build
from dsv3_port.parallel import TensorParallel
from dsv3_port.plan import PortPlan
from tests.random_models import CONFIG, random_model

V3 = DeepseekV3Config.preset("v3-671b")
FULL, UPSTREAM = PortPlan.full(), PortPlan.upstream()


def test_published_model_has_671_billion_parameters_37_of_them_active():
    assert total_params(V3) / 1e9 == pytest.approx(671.0, abs=0.05)
    assert active_params(V3) / 1e9 == pytest.approx(37, abs=0.6)


@pytest.mark.parametrize("plan", [UPSTREAM.plus("tensor_parallel"), FULL], ids=["upstream", "full"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_forecast_is_what_a_rank_holds(plan, world):
    model = build(CONFIG, plan, TensorParallel(world - 1, world))
    held = sum(p.nbytes for p in model.parameters())
    assert sum(weight_bytes(CONFIG, plan, world, "float32").values()) == held


@pytest.mark.parametrize("plan", [UPSTREAM, FULL], ids=["upstream", "full"])
def test_kv_bytes_are_those_of_the_cache(plan):
    cache = random_model(plan).new_cache(1, 8)
    cache.fill_random(8)
    assert cache.nbytes == 8 * kv_bytes_per_token(CONFIG, plan, "float32")


def test_kv_cache_of_the_published_model():
    assert kv_bytes_per_token(V3, FULL) == 61 * 576 * 2
    assert kv_bytes_per_token(V3, UPSTREAM) == 61 * 128 * 320 * 2
    assert kv_bytes_per_token(V3, FULL, world_size=8) == kv_bytes_per_token(
        V3, FULL
    )  # every rank keeps the row
    assert kv_bytes_per_token(V3, UPSTREAM, world_size=8) * 8 == kv_bytes_per_token(V3, UPSTREAM)


def test_forecast_says_what_fits():
    rows = {
        (f.dtype, f.world_size): f
        for f in forecast(V3, (8, 16, 32), 64, ("bfloat16", "int8"), 8, 4096)
    }
    assert {k for k, f in rows.items() if f.fits} == {("bfloat16", 32), ("int8", 16), ("int8", 32)}
    f = rows["bfloat16", 32]
    assert f.total_bytes == f.weights_total + f.kv_latent_bytes
    assert (
        f.kv_latent_bytes == 8 * 4096 * 70272 and f.kv_expanded_bytes == 8 * 4096 * 61 * 4 * 320 * 2
    )
    assert "GiB" in f.reason and "usable" in rows["bfloat16", 8].reason


def test_which_world_size_would_fit():
    assert world_sizes(V3) == [1, 2, 4, 8, 16, 32, 64, 128]
    for world in (*world_sizes(CONFIG), 3):
        (f,) = forecast(CONFIG, (world,))
        assert ("cannot be cut" in f.reason) == (world not in world_sizes(CONFIG))
    least = smallest_world(V3, 64)
    assert least == 32 and smallest_world(V3, 64, "int8") == 16
    assert [f.fits for f in forecast(V3, (least // 2, least), 64)] == [False, True]
    assert smallest_world(V3, 1) is None and smallest_world(V3, 2000) == 1


def test_an_int8_cache():
    """640 bytes a position and layer in bfloat16, in place of 1152, with the weights of W8A8."""
    plan = PortPlan.upto("9").replace(quant="w8a8", mla_prolog=True)
    c8 = plan.replace(kv_cache_dtype="int8")
    assert [kv_bytes_per_token(V3, p) for p in (plan, c8)] == [61 * 1152, 61 * 640]
    (a,), (b,) = (forecast(V3, (16,), plan=p, batch=8, seq_len=4096) for p in (plan, c8))
    assert a.weights_bytes == b.weights_bytes and a.kv_expanded_bytes == b.kv_expanded_bytes > 0
    assert a.total_bytes - b.total_bytes == 8 * 4096 * 61 * 512
    read = [decode_bytes(V3, p)["kv_cache"] for p in (plan, c8)]
    assert read[1] * 1152 == read[0] * 640


def test_forecast_follows_the_plan():
    (low,), (wide,) = (forecast(V3, (32,), plan=p, seq_len=100_000) for p in (FULL, UPSTREAM))
    assert low.weights_total == wide.weights_total
    assert wide.total_bytes - low.total_bytes == wide.kv_expanded_bytes - low.kv_latent_bytes > 0


def test_eight_bit_weights_halve_experts_but_not_the_head():
    half, full = weight_bytes(V3, FULL, 32, "float8_e4m3fn"), weight_bytes(V3, FULL, 32, "bfloat16")
    assert 0.5 < half["experts"] / full["experts"] < 0.502
    assert half["head"] == full["head"] and half["gate"] == full["gate"]  # the router stays float32
    whole = sum(weight_bytes(V3, UPSTREAM, 1, "float8_e4m3fn").values())
    assert whole == pytest.approx(673e9, rel=0.01)  # the published files without the MTP layer


def test_world_size_that_does_not_divide_is_a_row_and_not_an_error():
    (f,) = forecast(V3, (3,))
    assert not f.fits and f.weights_bytes == {} and "cannot be cut over 3 ranks" in f.reason


def test_decode_reads_active_weights_and_cache():
    read = decode_bytes(V3, FULL, "bfloat16", batch=1, context=4096)
    router = 58 * 2 * (256 * 7168 + 256)  # two more bytes each: it is float32
    assert sum(read.values()) - read["kv_cache"] == pytest.approx(
        2 * active_params(V3) + router, rel=1e-4
    )
    assert read["kv_cache"] == 4096 * 70272
    many = decode_bytes(V3, FULL, "bfloat16", batch=512)
    assert many["experts"] == pytest.approx(
        weight_bytes(V3, FULL, 1, "bfloat16")["experts"], rel=1e-5
    )
    assert many["attention"] == read["attention"]


@pytest.mark.parametrize(
    "arguments", [{"dtypes": ("int3",)}, {"hbm_gib": 0}, {"batch": 0}, {"reserve": 1.0}]
)
def test_bad_input(arguments):
    with pytest.raises(PortError):
        forecast(CONFIG, (2,), **arguments)


def test_int8_matrices_are_half_of_bfloat16():
    """671.03 billion parameters: 668.0 of int8, 0.68 GB of scales, the rest as before (the gate in
    float32)."""
    plan = PortPlan.full().replace(quant="w8a8")
    sizes = weight_bytes(V3, plan, 1, "bfloat16")
    assert sum(sizes.values()) / 1e9 == pytest.approx(674.7, abs=0.3)
    assert sum(weight_bytes(V3, PortPlan.full(), 1, "bfloat16").values()) / 1e9 > 1342
