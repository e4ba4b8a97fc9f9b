"""The forecast: arithmetic of the roofline, the recorded operator counts, and that everything says
FORECAST."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv3_port.config import DeepseekV3Config
from dsv3_port.count.step_work import Work, step_work
from dsv3_port.errors import PortError
from dsv3_port.forecast.checks import Check, check_rows, cited_checks
from dsv3_port.forecast.kernel_fit import MATRIX, VECTOR
from dsv3_port.forecast.kernels import CARD, by_id, kernels
from dsv3_port.forecast.roofline import (
    CARDS,
    FAST,
    PARTS,
    SLOW,
    Range,
    collective_seconds,
    forecast_ladder,
    forecast_step,
    operator_rows,
    operator_seconds,
)
from dsv3_port.forecast.waits import wait
from dsv3_port.ge import layers as ge_layers
from dsv3_port.lab import plots
from dsv3_port.plan import PortPlan
from dsv3_port.steps import STEPS

ELEMENTWISE = (
    *VECTOR,
    *(
        "Abs",
        "NotEqual",
        "Equal",
        "Fill",
        "Sub",
        "Less",
        "GreaterEqual",
        "LogicalAnd",
        "LogicalNot",
    ),
    *("MaskedFill", "SelectV2", "Triu", "OnesLike", "ScatterNdUpdate", "ViewCopy", "SliceAiCore"),
)
V3 = DeepseekV3Config.preset("v3-671b")
GOLDEN = Path(__file__).parents[1] / "hostnpu" / "golden.json"
A3 = CARDS["a3"]


@pytest.fixture(scope="module")
def ladder():
    return forecast_ladder(V3, "a2", world_size=32, batch=16)


@pytest.fixture(scope="module")
def checks():
    return cited_checks()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("rung", "form"),
    [("last_token_head", "full port"), ("add_rms_norm", "without last_token_head")],
)
def test_recorded_layers_add_up_to_the_golden_graphs(rung, form, phase):
    """The golden file holds graphs of a dense layer and one of experts."""
    wanted = json.loads(GOLDEN.read_text(encoding="utf-8"))[form][phase]
    assert ge_layers.operators(rung, phase, 1, 1) == wanted


def test_differences_of_three_models():
    layers = ge_layers.by_difference(
        {(1, 1): {"A": 5, "B": 2}, (2, 1): {"A": 7, "B": 2}, (1, 2): {"A": 6, "B": 4}}
    )
    assert layers == {"rest": {"A": 2}, "dense": {"A": 2}, "moe": {"B": 2, "A": 1}}
    assert ge_layers.combine(layers, 3, 2) == {"A": 10, "B": 4}
    assert ge_layers.kernels({"MatMul": 3, "Cast": 2, "Const": 9, "Add": 4}) == ((3, 3), (4, 6))
    with pytest.raises(PortError, match="not recorded"):
        ge_layers.operators("mla_low_rank", "decode", 3, 58)


def test_the_longer_of_bytes_and_products():
    by_bytes = operator_seconds(Work("head", "aten.mm", 10**9, 10**6), A3, FAST)
    by_products = operator_seconds(Work("head", "aten.mm", 10**3, 10**12), A3, FAST)
    assert by_bytes == (10**9 / (A3.memory * FAST.memory), "memory")
    assert by_products == (10**12 / (A3.bfloat16 * FAST.compute), "compute")
    wide = operator_seconds(Work("gate", "aten.mm", 10**3, 10**12, float32=True), A3, FAST)
    assert wide[0] == pytest.approx(by_products[0] * A3.bfloat16 / A3.float32)


def test_collectives_go_through_nodes_first():
    one = collective_seconds("all_reduce", 10**6, 8, CARDS["a2"], FAST)
    assert one == pytest.approx(FAST.collective_start + 2 * 7 / 8 * 10**6 / (196e9 * FAST.link))
    four = collective_seconds("all_reduce", 10**6, 32, CARDS["a2"], FAST)
    assert four - one == pytest.approx(2 * 3 / 4 * 10**6 / 8 / (25e9 * FAST.link))
    gathered = collective_seconds("all_gather", 10**6, 2, A3, FAST)
    assert gathered == pytest.approx(FAST.collective_start + 10**6 / (196e9 * FAST.link))


def test_the_ladder_has_every_step_and_a_range(ladder):
    for phase in ("prefill", "decode"):
        rows = {f.rung: f for f in ladder if f.phase == phase}
        assert list(rows) == [s.id for s in STEPS]
        for f in rows.values():
            device = [sum(getattr(f.parts[p], end) for p in PARTS[:3]) for end in ("low", "high")]
            assert (
                0 < f.total.low < f.total.high
                and f.total.low >= device[0]
                and f.total.high >= device[1]
            )
        assert rows["tensor_parallel"].work.syncs and not rows["gmm_routing"].work.syncs
        eager, graph = rows["last_token_head"], rows["ge_graph"]
        assert (
            graph.parts["host"] == Range(0, 0)
            and eager.parts["roofline"] == graph.parts["roofline"]
        )
        # in prefill the device binds, and at the slow end GE's graph keeps kernels that it could fuse
        end = "high" if phase == "decode" else "low"
        assert getattr(graph.total, end) <= getattr(eager.total, end) * 1.05
        assert rows["aclgraph"].launches == (eager.work.launches, eager.work.launches)


def test_ge_launches_come_from_the_converted_graph(ladder):
    graph = next(f for f in ladder if f.rung == "ge_graph" and f.phase == "decode")
    (matmuls, _), (fewest, most) = ge_layers.kernels(
        ge_layers.operators("last_token_head", "decode", 3, 58)
    )
    assert graph.launches == (matmuls + fewest, matmuls + most)
    starts = graph.parts["kernel starts"]
    for end, a, others in ((starts.low, FAST, fewest), (starts.high, SLOW, most)):
        kernels = matmuls * a.matmul_start + others * a.other_start
        assert end == pytest.approx(kernels + (matmuls + others) * a.wait)


def test_a_weight_read_is_a_lower_bound(ladder):
    """No decode step beats one pass over what it must read, and the low-rank cache shortens the
    roofline."""
    rows = {f.rung: f for f in ladder if f.phase == "decode"}
    for f in rows.values():
        assert f.total.low > f.work.nbytes / CARDS["a2"].memory
    assert (
        rows["mla_low_rank"].parts["roofline"].low < rows["tensor_parallel"].parts["roofline"].low
    )


def test_errors_are_told(checks):
    assert len(checks) == 5
    assert Check("", "ms", 9.0, Range(1, 3), "", "").verdict == "3.0 times above the range"
    assert Check("", "ms", 1.0, Range(2, 8), "", "").verdict == "2.0 times below the range"
    assert Check("", "ms", 2.0, Range(1, 4), "", "").error == 0
    for c, row in zip(checks, check_rows(), strict=True):
        assert (c.verdict == "inside") == c.inside and c.source and c.how
        assert row["middle of the forecast"] == f"{100 * c.error:+.0f}%"
    assert plots.forecast_checks(checks).alt_text.startswith("FORECAST")


def test_the_page_of_limits_tells_the_same_misses(checks):
    text = " ".join(
        (Path(__file__).parents[2] / "docs" / "limits.md").read_text(encoding="utf-8").split()
    )
    missed = sorted(float(c.verdict.split()[0]) for c in checks if not c.inside)
    assert f"two of them lie outside the range, by {missed[0]} and {missed[1]} times" in text
    assert len(missed) == 2


def test_constants_are_those_of_measured_kernels():
    """Every number of FAST and SLOW that has rows, from its rows; the comment above them says
    which."""

    def quarter(values, part):
        return sorted(values)[int(part * len(values))]

    b4 = [k for k in kernels() if k.device == CARD and "spread" not in k.flag]
    card = CARDS["a2-280t"]
    products = [k for k in b4 if k.kernel in MATRIX and k.dtype == "bfloat16"]
    rates = [k.mb / k.median * 1e6 for k in products if k.mb > 20 and k.rows <= 8]
    assert len(rates) == 16
    assert (SLOW.memory, FAST.memory) == tuple(
        round(r * 1e6 / card.memory, 2) for r in (min(rates), max(rates))
    )
    plain = [k for k in products if k.kernel in ("MatMulV2", "MatMulV3")]
    large = [k.gflop / k.median * 1e15 for k in plain if k.rows >= 3585 and k.gflop > 5]
    assert len(large) == 29
    assert (SLOW.compute, FAST.compute) == tuple(
        round(quarter(large, q) / card.bfloat16, 2) for q in (0.25, 0.75)
    )
    int8 = [k for k in b4 if k.kernel == "QuantBatchMatmulV3" and k.rows >= 4000]
    reached = [k.gflop / k.median * 1e15 / card.int8 for k in int8]
    assert (SLOW.int8, FAST.int8) == tuple(round(quarter(reached, q), 2) for q in (0.25, 0.75))
    one = [by_id()[r] for r in ("k347", "k350", "k353")]
    prefill = [k.gflop / k.median * 1e15 / card.bfloat16 for k in one]
    assert (SLOW.attention, FAST.attention) == (round(min(prefill), 2), round(max(prefill), 2))
    starts = [k.median for k in b4 if k.kernel in MATRIX and 0 < k.mb < 4.5]
    assert (FAST.matmul_start, SLOW.matmul_start) == pytest.approx(
        [1e-6 * quarter(starts, q) for q in (0.25, 0.75)], rel=0.01
    )
    small = {
        d: [
            k.median
            for k in kernels()
            if k.device == d
            and k.kernel in ELEMENTWISE
            and k.state != "dynamic"
            and k.mb < 0.1
            and "spread" not in k.flag
        ]
        for d in ("A3", CARD)
    }
    assert FAST.other_start == pytest.approx(1e-6 * quarter(small["A3"], 0.25), abs=5e-8)
    assert SLOW.other_start == pytest.approx(1e-6 * quarter(small[CARD], 0.75), abs=5e-8)
    eager, graph = wait("eager"), wait("aclgraph")
    assert (FAST.host, SLOW.host) == pytest.approx([1e-6 * eager.low, 1e-6 * eager.high], rel=0.01)
    assert (FAST.wait, SLOW.wait) == pytest.approx([1e-6 * graph.low, 1e-6 * graph.high])


def test_every_picture_and_record_says_forecast(ladder):
    decode = [f for f in ladder if f.phase == "decode"]
    for figure in (plots.forecast_ladder(ladder), plots.forecast_parts(decode)):
        assert (
            figure.alt_text.startswith("FORECAST, nothing measured")
            and "FORECAST" in figure.get_suptitle()
        )
        assert len(figure.png()) > 5000
    said = ladder[0].to_dict()
    assert said["forecast"] is True and json.loads(json.dumps(said))["ranks"] == 32
    with pytest.raises(PortError, match="one card"):
        plots.forecast_ladder([])
    with pytest.raises(PortError, match="one phase"):
        plots.forecast_parts(ladder)


def test_operators_by_time(ladder):
    rows = operator_rows(ladder[-1].work, "a2", top=3)
    assert (
        len(rows) == 3
        and rows[0]["operator"] == "npu_grouped_matmul"
        and rows[0]["bound by"] == "memory"
    )
    times = [row["ms at best"] for row in rows]
    assert times == sorted(times, reverse=True)


def test_refusals():
    work = step_work(DeepseekV3Config.preset("tiny"), PortPlan.upto("mla_low_rank"), context=8)
    with pytest.raises(PortError, match="a2, a2-280t, a3"):
        forecast_step(work, "h100")
    with pytest.raises(PortError, match="a2, a2-280t, a3"):
        forecast_ladder(V3, "h100")
    with pytest.raises(PortError, match="GE graph was not counted"):
        forecast_step(work, "a3", "ge")
