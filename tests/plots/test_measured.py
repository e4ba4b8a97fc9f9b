"""Plots say what they show in words, name their device, mark regressions, and refuse the stand-in's
timings."""

from __future__ import annotations

import base64
import html
import io
import random
import re
import types
from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from dsv3_port.bench.records import FAIR, PEER, UPSTREAM, Results
from dsv3_port.bench.rungs import recorded_rungs
from dsv3_port.bench.worlds import WorldSamples
from dsv3_port.config import DeepseekV3Config
from dsv3_port.errors import PortError
from dsv3_port.forecast.planner import forecast
from dsv3_port.lab import plots
from dsv3_port.paths import repo_root
from dsv3_port.plan import PortPlan
from dsv3_port.plots.colours import BLUE, GREY, ORANGE, SMALL, VERMILLION
from dsv3_port.plots.curves import memory_curve
from dsv3_port.plots.graph_rungs import graph_rungs
from dsv3_port.plots.group_boards import group_boards
from dsv3_port.plots.memory import cited
from dsv3_port.plots.merge_strips import merge_strips
from dsv3_port.plots.rank_lines import rank_lines
from dsv3_port.plots.ranks import step_split
from dsv3_port.plots.ratios import ratio_chart
from dsv3_port.plots.shard_strips import shard_strips
from dsv3_port.plots.style import figure, finish
from dsv3_port.steps import STEPS
from tests.bench.test_measure import record
from tests.random_models import CONFIG

V3 = DeepseekV3Config.preset("v3-671b")
RUNGS = [UPSTREAM, FAIR, *(s.id for s in STEPS if s.field != "graph"), "ge_graph", PEER]


def ladder_results(**fields) -> Results:
    """Times fall from rung to rung but for gmm_routing, which is slower in decode."""
    noise, out = random.Random(0), []
    for phase, base in (("prefill", 0.05), ("decode", 0.008)):
        for k, name in enumerate(RUNGS):
            time = base * 0.93**k * (1.6 if (name, phase) == ("gmm_routing", "decode") else 1)
            out.append(
                record(
                    name,
                    [time * noise.uniform(0.99, 1.01) for _ in range(7)],
                    phase=phase,
                    run=phase,
                    batch=1,
                    dtype="float32",
                    mode="compiled" if name == "ge_graph" else "eager",
                    **fields,
                )
            )
    return Results(out)


def curve_results() -> Results:
    return Results(
        [
            record(name, [t * c * s for s in (0.9, 1.0, 1.1)], context=c, phase="decode")
            for name, t in (("upstream", 1e-5), ("mla_low_rank", 2e-6))
            for c in (256, 512, 1024)
        ]
    )


FIGURES = {
    "ladder": lambda: plots.ladder(ladder_results()),
    "one phase": lambda: plots.ladder(ladder_results(), "decode"),
    "step_bars": lambda: plots.step_bars(ladder_results(), UPSTREAM, "mla_low_rank"),
    "cost_curve": lambda: plots.cost_curve(curve_results()),
    "graph_rungs": lambda: graph_rungs(recorded_rungs(repo_root() / "data" / "recorded", [])),
    "op_census": lambda: plots.op_census(
        {"upstream": {"aten.mm": 39, "aten.mul": 61}, "full": {"npu_swiglu": 5}}
    ),
    "ge_census": lambda: plots.ge_census(
        {
            "full port": {"MatMul": 39, "Scatter": 4, "ScatterElements": 2, "Add": 6},
            "without mla_low_rank": {"SwiGlu": 5},
        }
    ),
    "memory_bars": lambda: plots.memory_bars(forecast(V3, (3, 8, 32), plan=PortPlan.full()), 64),
    "memory_curve": lambda: memory_curve(forecast(V3, (1, 8, 32, 128), plan=PortPlan.full())),
    "kv_cache": lambda: plots.kv_cache_to_scale(V3, 131072),
    "shard": lambda: plots.shard_picture(CONFIG, None, 4),
    "shard 16": lambda: plots.shard_picture(V3, PortPlan.upstream(), 16),
    "expert_load": lambda: plots.expert_load(torch.arange(16).view(2, 8), 4),
    "group_mask": lambda: plots.group_mask(
        torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0]]), torch.rand(2, 4)
    ),
    "group_boards": lambda: group_boards(torch.tensor([[0, 3], [2, 1], [3, 0]]), 4),
    "merge_strips": merge_strips,
    "shard_strips": shard_strips,
    "rank_lines": rank_lines,
    "routing": lambda: plots.routing_picture(torch.tensor([[0, 2], [3, 2], [0, 5]]), 6),
    **{f"cited {key}": (lambda key=key: plots.cited_figures(key)) for key in cited()},
    "ratio_chart": lambda: ratio_chart(ladder_results(), UPSTREAM),
}
TWO_WIDTHS = (
    *("ladder", "step_bars", "cost_curve", "op_census", "ge_census", "memory_curve"),
    *("one phase", "ratio_chart"),
)
FIGURES |= {f"{n}, phone": (lambda n=n: FIGURES[n]().narrow()) for n in TWO_WIDTHS}


@pytest.fixture(scope="module", params=FIGURES, ids=lambda name: name)
def drawn(request):
    return request.param, FIGURES[request.param]()


def test_every_figure_has_words_and_legible_text(drawn):
    name, fig = drawn
    assert isinstance(fig, Figure) and len(fig.alt_text) > 40
    assert not fig.findobj(
        lambda o: hasattr(o, "get_fontsize") and o.get_text() and o.get_fontsize() < SMALL
    )


def test_png_is_small_and_carries_the_text(drawn, tmp_path):
    name, fig = drawn
    bundle, metadata = fig._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == fig.alt_text and bundle["text/plain"] == fig.alt_text
    assert (
        html.escape(fig.alt_text) in bundle["text/html"]
        and bundle["image/png"] in bundle["text/html"]
    )
    file = plots.save(fig, tmp_path / "deep" / "x.png")
    assert file.stat().st_size < 100_000
    image = Image.open(io.BytesIO(file.read_bytes()))
    assert image.text["Description"] == fig.alt_text


@pytest.mark.parametrize("name", TWO_WIDTHS)
def test_a_phone_has_a_picture_of_its_own(name):
    """As wide as a phone, with the same words; a page chooses by the width of its window."""
    fig = FIGURES[name]()
    narrow = fig.narrow()
    assert narrow.get_figwidth() == 4.2 and narrow.narrow is None
    assert narrow.alt_text == fig.alt_text
    shown = fig._repr_mimebundle_()[0]["text/html"]
    assert shown.count("<source media=") == 1 and shown.count("<img") == 1
    phone = base64.b64decode(re.search(r'srcset="data:image/png;base64,([^"]+)"', shown)[1])
    assert Image.open(io.BytesIO(phone)).width == 462 and len(phone) < 100_000
    assert len({ax.get_window_extent().x0 for ax in narrow.axes}) == 1  # one below the other


def test_what_has_one_width_says_how_wide_it_is_legible():
    shown = plots.kv_cache_to_scale(V3)._repr_mimebundle_()[0]["text/html"]
    assert "<picture>" not in shown and "--phone:648px" in shown


def test_nothing_is_clipped(drawn):
    """Labels that belong to the figure lie inside it."""
    _, fig = drawn
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    box = fig.bbox
    labels = [
        t
        for ax in fig.axes
        for t in [*ax.texts, ax._left_title, *(ax.get_yticklabels() * ax.axison)]
    ]
    for text in (t for t in [*labels, *fig.texts] if t.get_text()):
        extent = text.get_window_extent(renderer)
        assert extent.x0 >= box.x0 - 2 and extent.x1 <= box.x1 + 2, (
            f"{text.get_text()!r} leaves the figure"
        )


@pytest.mark.parametrize("letter", "iwW")
def test_lines_break_where_the_figure_ends_whatever_the_letters(letter):
    """A headline of wide letters, one of narrow ones: as many words a line as fit, none outside."""
    fig, (ax,) = figure(size=(6.0, 2.0))
    words = [letter * 4] * 40
    finish(fig, "x" * 41, " ".join(words), title=" ".join(words))
    renderer = FigureCanvasAgg(fig).get_renderer()
    for text in (fig._suptitle, fig._supxlabel):
        assert text.get_text().split() == words
        lines = text.get_text().split("\n")
        assert text.get_window_extent(renderer).width <= 0.99 * fig.bbox.width
        text.set_text(f"{lines[0]} {words[0]}")  # one word more would not have fitted
        assert text.get_window_extent(renderer).width > 0.97 * fig.bbox.width


@pytest.mark.parametrize(
    "draw",
    [
        plots.ladder,
        lambda r: plots.step_bars(r, UPSTREAM, "mla_low_rank"),
        lambda r: plots.cost_curve(r, "batch"),
        lambda r: step_split(types.SimpleNamespace(results=r, worlds={})),
    ],
)
def test_timings_of_the_stand_in_are_refused(draw):
    with pytest.raises(PortError, match="host stand-in"):
        draw(ladder_results(tier="host-npu"))


def worlds(busy: bool) -> types.SimpleNamespace:
    """What time_worlds gives of one rank and two."""
    both = {"1 rank": (0.010, 0.0, 0.0), "2 ranks": (0.012, 0.004, 0.001)}
    samples = {
        name: WorldSamples(steps=[step] * 3, inside=[inside] * 3, alone=[alone] * 3)
        for name, (step, inside, alone) in both.items()
    }
    records = [record(n, s.steps, busy=busy, busy_share=0.5 * busy) for n, s in samples.items()]
    return types.SimpleNamespace(results=Results(records), worlds=samples)


def test_a_step_over_ranks_is_split_and_a_busy_one_says_no_time():
    quiet, busy = step_split(worlds(False)), step_split(worlds(True))
    assert "2 ranks 12" in quiet.alt_text and "33% in collectives" in quiet.alt_text
    assert "moving 1.00 ms, waiting 3.00 ms" in quiet.alt_text
    assert " ms" not in busy.alt_text and busy.axes[0].get_title(loc="left").startswith("busy: 50%")
    assert all(bar.get_facecolor()[:3] != to_rgb(BLUE) for bar in busy.axes[0].patches)


def test_a_layer_ends_twice_in_a_sum():
    fig = rank_lines(layers=2)
    sums = [p for p in fig.axes[0].patches if p.get_facecolor()[:3] == to_rgb(ORANGE)]
    assert len(sums) == 1 + 2 * 2  # the embedding's, and two of each layer
    with pytest.raises(PortError, match="not 3"):
        rank_lines(layers=3)


def test_ge_operators_are_told_apart_by_their_whole_name():
    """Scatter writes the cache, ScatterElements is a scatter."""
    text = FIGURES["ge_census"]()
    counts = {c.get_label(): [int(bar.get_width()) for bar in c] for c in text.axes[0].containers}
    sizes = {k: v[0] for k, v in counts.items() if not k.startswith("_")}
    assert sizes == {
        "NPU operator": 4,
        "matrix product": 39,
        "sort, gather, scatter": 2,
        "copy, transpose, cast": 0,
        "reduction, softmax": 0,
        "elementwise": 6,
    }


def test_timing_plots_name_device_dtype_versions():
    for name in ("ladder", "step_bars"):
        text = FIGURES[name]().alt_text
        assert "a CPU, 2 cores (cpu)" in text and "float32" in text and "torch 2.13.0" in text


@pytest.mark.parametrize(
    "draw",
    [
        lambda results: plots.ladder(results),
        lambda results: ratio_chart(results, UPSTREAM, ["mla_low_rank", "gmm_routing"]),
        lambda results: plots.step_bars(results, UPSTREAM, "mla_low_rank"),
    ],
    ids=["ladder", "ratio_chart", "step_bars"],
)
@pytest.mark.parametrize("busy", [True, False])
def test_titles_of_two_panels_do_not_meet(draw, busy):
    """As a busy machine's run has them, the longest there are, and with long sizes."""
    fields = {"busy": True, "busy_share": 0.97} if busy else {}
    fig = draw(ladder_results(context=131072, tokens=16384, **fields))
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    boxes = [
        text.get_window_extent(canvas.get_renderer())
        for ax in fig.axes
        for text in [ax.title, ax._left_title]
        if text.get_text()
    ]
    assert len(boxes) == len(fig.axes) == 2 and not boxes[0].overlaps(boxes[1])
    assert all(box.x0 >= 0 and box.x1 <= fig.bbox.width for box in boxes)


def test_a_busy_curve_has_no_exponents():
    quiet, busy = curve_results(), curve_results()
    busy = Results([replace(r, busy=True, busy_share=0.97) for r in busy])
    assert "∝" in plots.cost_curve(quiet).alt_text
    fig = plots.cost_curve(busy)
    words = [t.get_text() for t in fig.axes[0].get_legend().get_texts()] + [fig.alt_text]
    assert (
        not any("∝" in w for w in words)
        and "ms" not in fig.alt_text.partition("no verdict")[2][:90]
    )
    assert fig.axes[0].get_title("left") == "busy: 97% used by others"
    assert {to_hex(line.get_color()) for line in fig.axes[0].get_lines()} == {GREY.lower()}


def test_busy_records_are_marked():
    assert "MACHINE WAS BUSY" in plots.ladder(ladder_results(busy=True, busy_share=0.4)).alt_text


def test_regression_is_hatched_in_its_own_colour():
    prefill, decode = plots.ladder(ladder_results()).axes
    row = RUNGS.index("gmm_routing")
    bars = {ax: [p for p in ax.patches if p.get_width() > 0] for ax in (prefill, decode)}
    assert (
        to_hex(bars[decode][row].get_facecolor()).upper() == VERMILLION
        and bars[decode][row].get_hatch() == "//"
    )
    assert not any(b.get_hatch() for k, b in enumerate(bars[decode]) if k != row)
    assert not any(b.get_hatch() for b in bars[prefill])
    for k in (0, 1, len(RUNGS) - 1):  # baselines and the peer are no rungs
        assert to_hex(bars[decode][k].get_facecolor()).upper() == GREY.upper()


def test_ladder_labels_hold_the_paired_factor():
    results = ladder_results()
    decode = plots.ladder(results, "decode").axes[0]
    texts = [t.get_text() for t in decode.texts]
    assert any(
        t.endswith(f"{results.ratio(UPSTREAM, 'mla_low_rank', 'decode').median:.2f}×")
        for t in texts
    )


def test_step_alone_says_faster_slower_or_neither():
    results = Results(
        [
            record("a", [1.0, 1.0, 1.0]),
            record("fast", [0.5, 0.5, 0.5]),
            record("slow", [2.0, 2.0, 2.0]),
            record("same", [0.9, 1.0, 1.1]),
        ]
    )
    assert "2.00× faster" in plots.step_bars(results, "a", "fast").alt_text
    assert "2.00× slower" in plots.step_bars(results, "a", "slow").alt_text
    assert "no difference that this run can show" in plots.step_bars(results, "a", "same").alt_text
    with pytest.raises(PortError, match="no phase has records of both"):
        plots.step_bars(results, "a", "absent")


def test_bar_and_factor_are_one_statistic():
    """By pairs b is faster while its own median is the longer one: the bar follows the pairs."""
    results = Results(
        [
            record("a", [1.0, 1.0, 1.0, 5.0, 5.0], tier="cuda"),
            record("b", [0.9, 0.9, 1.2, 4.0, 4.0], tier="cuda"),
        ]
    )
    ratio = results.ratio("a", "b")
    figure = plots.step_bars(results, "a", "b")
    base, other = (p.get_width() for p in figure.axes[0].patches)
    assert other == pytest.approx(base / ratio.median) and other < base
    assert f"{ratio.median:.2f}× faster" in figure.alt_text


@pytest.mark.parametrize(
    "draw",
    [
        plots.ladder,
        lambda r: plots.step_bars(r, UPSTREAM, "mla_low_rank", "decode"),
        lambda r: ratio_chart(r, UPSTREAM, ["mla_low_rank", "gmm_routing"]),
    ],
)
def test_a_busy_run_is_grey_and_says_no_factor(draw):
    figure = draw(ladder_results(busy=True, busy_share=0.4))
    texts = [t.get_text() for ax in figure.axes for t in ax.texts]
    texts += [ax.get_title("left") for ax in figure.axes]
    assert not any("×" in t for t in texts) and any("busy: 40% used by others" in t for t in texts)
    for ax in figure.axes:
        drawn = [p for p in ax.patches if p.get_width() > 0 and p.get_hatch()]
        assert all(to_hex(p.get_facecolor()).upper() == GREY.upper() for p in drawn)


def test_compiled_rung_says_which_compiler_ran():
    labels = [
        t.get_text() for t in plots.ladder(ladder_results(), "decode").axes[0].get_yticklabels()
    ]
    assert "7 torchair GE graph (here: inductor)" in labels


def test_a_tape_is_not_said_to_be_compiled():
    modes = {"eager": "eager", "replayed": "replayed", "yours": "compiled"}
    results = Results([record(n, [1.0], phase="decode", mode=m) for n, m in modes.items()])
    for name, label in (("replayed", "replayed"), ("yours", "yours (here: inductor)")):
        (ax,) = plots.step_bars(results, "eager", name).axes
        assert [t.get_text() for t in ax.get_yticklabels()] == ["eager", label]


def test_ladder_takes_the_largest_run_of_a_file_with_many():
    small = Results(
        [record(n, [1.0], phase="decode", run="later") for n in (UPSTREAM, "merged_mlp")]
    )
    fig = plots.ladder(ladder_results() + small, "decode")
    assert len(fig.axes[0].get_yticklabels()) == len(RUNGS)


def test_panels_with_other_variants_have_their_own_labels():
    results = ladder_results()
    decode = [r for r in results if r.phase == "decode" or r.name != PEER]
    prefill_axis, decode_axis = plots.ladder(Results(decode)).axes
    assert (
        prefill_axis.get_yticklabels()[0].get_text()
        == decode_axis.get_yticklabels()[0].get_text()
        == UPSTREAM
    )


def test_only_steps_are_kept_out_of_the_ladder():
    results = ladder_results() + Results(
        [record("only merged_mlp", phase="decode", run="decode", samples=[1.0] * 7)]
    )
    assert "only" not in plots.ladder(results).alt_text


@pytest.mark.parametrize(("y", "power"), [([3, 6, 12], 1.0), ([5, 5, 5], 0.0), ([1, 4, 16], 2.0)])
def test_fit_exponent(y, power):
    assert plots.fit_exponent([1, 2, 4], y) == pytest.approx(power)


def test_fit_exponent_needs_two_points():
    for x, y in (([1], [1]), ([1, 1], [1, 2]), ([1, 2], [0, 1]), ([1, 2], [1])):
        with pytest.raises(PortError):
            plots.fit_exponent(x, y)


def test_cost_curve_refuses_mixed_records():
    with pytest.raises(PortError, match="several records with the same context"):
        plots.cost_curve(
            Results([record("a", context=8, phase=p, run=p) for p in ("prefill", "decode")])
        )


def test_kv_cache_areas_are_to_scale():
    fig = plots.kv_cache_to_scale(V3, 131072)
    areas = [p.get_width() * p.get_height() for p in fig.axes[0].patches]
    assert sum(areas[:3]) / areas[3] == pytest.approx(128 * 320 / 576)
    assert "71.1 times" in fig.alt_text


def test_shard_picture_tells_cut_from_whole():
    text = plots.shard_picture(CONFIG, None, 4).alt_text
    for said in (
        "attention q_a_proj not cut",
        "attention q_b_proj outputs: heads",
        "attention o_proj inputs: heads",
        "expert e down_proj inputs: width",
        "router gate not cut",
        "embedding embed_tokens outputs: vocabulary",
    ):
        assert said in text
    with pytest.raises(PortError, match="cannot be cut over 3 ranks"):
        plots.shard_picture(CONFIG.replace(vocab_size=100), None, 3)


def test_routing_picture_gives_both_group_lists():
    text = plots.routing_picture(torch.tensor([[0, 2], [3, 2], [0, 5]]), 6).alt_text
    assert "[2, 2, 4, 5, 5, 6]" in text and "[2, 0, 2, 1, 0, 1]" in text


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.routing_picture(torch.zeros(10, 8)),
        lambda: plots.expert_load(torch.zeros(3)),
        lambda: plots.group_mask(torch.zeros(100, 8)),
        lambda: group_boards(torch.zeros(9, 2, dtype=torch.int64), 8),
        lambda: plots.memory_bars([]),
        lambda: plots.op_census({}),
        lambda: plots.cited_figures("nothing"),
        lambda: plots.ladder(Results()),
        lambda: plots.ladder(ladder_results(), "training"),
        lambda: plots.save(plots.ladder(ladder_results()), "x.pdf"),
    ],
)
def test_bad_input_is_a_sentence(draw):
    with pytest.raises(PortError):
        draw()


def test_cited_figures_say_whose_they_are():
    for key, entry in cited().items():
        assert all(
            entry[k]
            for k in ("source", "source_date", "conditions", "model", "hardware", "read", "note")
        )
        assert all(len(r["values"]) == len(entry["columns"]) for r in entry["rows"])
        fig = plots.cited_figures(key)
        assert (
            fig.get_suptitle().startswith("CITED") and entry["source"].split(":")[0] in fig.alt_text
        )
    assert [r["values"][0] for r in cited()["v31_graph_modes"]["rows"]] == [185.6, 45.0, 41.2]


def test_svg_is_the_same_every_time(tmp_path):
    files = [plots.save(FIGURES["ladder"](), tmp_path / f"{k}.svg").read_bytes() for k in range(2)]
    assert files[0] == files[1] and b"<svg" in files[0]


def test_memory_curve_needs_one_dtype_and_two_cuts():
    for rows in (
        forecast(V3, (8,)),
        forecast(V3, (8, 32), dtypes=("bfloat16", "int8")),
        forecast(V3, (3, 8)),
    ):
        with pytest.raises(PortError, match="one dtype for two numbers of ranks"):
            memory_curve(rows)


def test_memory_curve_says_what_is_cut_and_what_is_copied():
    alt = memory_curve(forecast(V3, (1, 2, 4, 8), plan=PortPlan.full())).alt_text
    assert "routed experts (∝ ranks^-1.00)" in alt
    assert "KV cache (∝ ranks^0.00)" in alt  # every rank holds the latent row
