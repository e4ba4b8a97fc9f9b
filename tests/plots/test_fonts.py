"""Pictures speak Chinese where a font has every character, English where none is, and never show boxes."""

from __future__ import annotations

import re
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from matplotlib import font_manager, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dsv3_port.bench.records import UPSTREAM
from dsv3_port.bench.rungs import recorded_rungs
from dsv3_port.config import DeepseekV3Config
from dsv3_port.forecast.checks import cited_checks
from dsv3_port.forecast.planner import forecast
from dsv3_port.forecast.roofline import forecast_ladder as forecasts
from dsv3_port.hostnpu.ge import Graph
from dsv3_port.messages import catalogue, using
from dsv3_port.paths import repo_root
from dsv3_port.plan import PortPlan
from dsv3_port.plots import fonts, style
from dsv3_port.plots.bars import ladder, step_bars
from dsv3_port.plots.cache_strips import cache_strips
from dsv3_port.plots.curves import cost_curve, memory_curve
from dsv3_port.plots.drafts import accepted_steps, draft_costs, draft_steps
from dsv3_port.plots.faults import step_map, tool_map
from dsv3_port.plots.forecast import forecast_checks, forecast_ladder, forecast_parts
from dsv3_port.plots.ge_layer import layer_picture
from dsv3_port.plots.graph_pieces import graph_pieces
from dsv3_port.plots.graph_rungs import graph_rungs
from dsv3_port.plots.group_boards import group_boards
from dsv3_port.plots.int8 import int8_errors, scales_outside
from dsv3_port.plots.lanes import lanes
from dsv3_port.plots.mailboxes import mailboxes
from dsv3_port.plots.memory import cited, cited_figures, kv_cache_to_scale, memory_bars
from dsv3_port.plots.merge_strips import merge_strips
from dsv3_port.plots.mla import absorb_picture, kv_b_split
from dsv3_port.plots.model_map import model_picture
from dsv3_port.plots.npu_forward import npu_forward
from dsv3_port.plots.npu_ladder import npu_ladder
from dsv3_port.plots.npu_step import npu_step
from dsv3_port.plots.one_launch import int8_cache, launches_picture, nz_picture
from dsv3_port.plots.operators import op_census
from dsv3_port.plots.pages import page_strips
from dsv3_port.plots.parameters import parameter_picture
from dsv3_port.plots.profile import where_time_goes
from dsv3_port.plots.rank_lines import rank_lines
from dsv3_port.plots.ratios import ratio_chart
from dsv3_port.plots.rounding import rounding_histogram
from dsv3_port.plots.routing import expert_load, group_mask, routing_picture
from dsv3_port.plots.routing_steps import routing_steps
from dsv3_port.plots.rows import hand_over, rows_over_time
from dsv3_port.plots.shard_strips import shard_strips
from dsv3_port.plots.sharding import shard_picture
from dsv3_port.steps import STEPS
from tests.ge.test_tables import node
from tests.plots.test_drafts import TEXTS, times, work
from tests.plots.test_int8 import ERRORS, cost
from tests.plots.test_measured import curve_results, ladder_results
from tests.plots.test_one_launch import steps
from tests.plots.test_rows import SLOTS, STATIC
from tests.random_models import CONFIG

# drawn in Chinese too, of records and graphs that a test would have to make
MORE = {
    *("blocks_over_time", "ge_census", "prompt_curves", "step_split", "traffic_plot"),
}
HAN = re.compile(r"[\u4e00-\u9fff]")
V3 = DeepseekV3Config.preset("v3-671b")


def cards(*worlds: int):
    return forecast(V3, worlds, plan=PortPlan.full())


def ge_graph() -> Graph:
    """One decoder layer: attention, a gate, an MLP, two residual sums."""
    drawn = [
        *(node("ids", "Data", index=0), node("table", "Data", index=1), node("w", "Data", index=2)),
        node("x", "GatherV2", [("table", 0), ("ids", 0)]),
    ]
    for name, kind, *before in (
        *(("n1", "RmsNorm", "x"), ("q", "MatMul", "n1"), ("s", "SoftmaxV2", "q")),
        *(("o", "MatMul", "s"), ("r1", "Add", "x", "o"), ("n2", "RmsNorm", "r1")),
        *(("t", "TopKV2", "n2"), ("u", "MatMul", "n2"), ("act", "SwiGlu", "u")),
        *(("m", "Mul", "act", "t"), ("d", "MatMul", "m"), ("r2", "Add", "r1", "d")),
        *(("head", "MatMul", "r2"), ("out", "NetOutput", "head")),
    ):
        inputs = [(b, 0) for b in before] + ([("w", 0)] if kind == "MatMul" else [])
        drawn.append(node(name, kind, inputs))
    return Graph("decode", drawn)


def ladder_of(*phases: str):
    return forecasts(V3, "a2", world_size=32, phases=phases)


PICTURES = {
    "step_bars": lambda: step_bars(ladder_results(), UPSTREAM, "gmm_routing"),
    "ladder": lambda: ladder(ladder_results()),
    "ladder, busy": lambda: ladder(ladder_results(busy=True, busy_share=0.4)),
    "cost_curve": lambda: cost_curve(curve_results()),
    "memory_curve": lambda: memory_curve(cards(8, 16, 32)),
    "memory_bars": lambda: memory_bars(cards(8, 32)),
    "ratio_chart": lambda: ratio_chart(ladder_results(), UPSTREAM),
    "op_census": lambda: op_census({"upstream": {"aten.mm": 3, "aten.add": 2}}),
    "cache_strips": cache_strips,
    "shard_strips": shard_strips,
    "merge_strips": merge_strips,
    "graph_pieces": graph_pieces,
    "group_boards": lambda: group_boards(torch.tensor([[0, 2], [1, 3]]), 4),
    "rank_lines": rank_lines,
    "mailboxes": mailboxes,
    "step_map": step_map,
    "tool_map": lambda: tool_map({"model 1": {"the same text": True, "a gate": False}}),
    "expert_load": lambda: expert_load(torch.ones(2, 8), 2),
    "group_mask": lambda: group_mask(torch.eye(3)),
    "page_strips": page_strips,
    "scales_outside": scales_outside,
    "int8_errors": lambda: int8_errors(ERRORS, {"W8A8": cost(0.02)}),
    "nz_picture": nz_picture,
    "launches_picture": lambda: launches_picture(*steps()),
    "int8_cache": lambda: int8_cache({"int8 cache": (512, 128)}, {"int8 cache": cost(0.02)}),
    "absorb_picture": lambda: absorb_picture(V3),
    "model_picture": lambda: model_picture(V3),
    "shard_picture": lambda: shard_picture(CONFIG, None, 4),
    "kv_cache_to_scale": lambda: kv_cache_to_scale(V3),
    "draft_steps": draft_steps,
    "accepted_steps": lambda: accepted_steps(TEXTS),
    "draft_costs": lambda: draft_costs(times(), {1: work(150, 5), 8: work(170, 4)}, TEXTS),
    "draft_costs, busy": lambda: draft_costs(times(busy=True), {1: work(150, 5)}, TEXTS),
    "hand_over": hand_over,
    "rows_over_time": lambda: rows_over_time(STATIC, SLOTS),
    **{f"cited_figures, {key}": (lambda key=key: cited_figures(key)) for key in cited()},
    "forecast_checks": lambda: forecast_checks(cited_checks()),
    "forecast_ladder": lambda: forecast_ladder(ladder_of("prefill", "decode")),
    "forecast_parts": lambda: forecast_parts(ladder_of("decode")),
    "graph_rungs": lambda: graph_rungs(recorded_rungs(repo_root() / "data" / "recorded", [])),
    "kv_b_split": lambda: kv_b_split(V3),
    "layer_picture": lambda: layer_picture(ge_graph(), 0),
    "npu_forward": npu_forward,
    "npu_ladder": lambda: npu_ladder(V3, (8,), (1,)),
    **{f"npu_step, {s.id}": (lambda name=s.id: npu_step(name)) for s in STEPS},
    "parameter_picture": lambda: parameter_picture({"V3": V3}),
    "rounding_histogram": lambda: rounding_histogram({"a": torch.tensor([0.1, 0.4, 1.2])}),
    "routing_picture": lambda: routing_picture(torch.tensor([[0, 2], [3, 2], [0, 5]]), 6),
    "where_time_goes": lambda: where_time_goes({"a": {"mm": 2e-3, "add": 1e-3}}, top=1),
}


@pytest.fixture
def no_font(monkeypatch):
    monkeypatch.setattr(fonts, "FAMILIES", ())
    fonts.chinese_font.cache_clear()
    yield
    fonts.chinese_font.cache_clear()


@pytest.fixture(scope="module")
def font() -> str:
    return fonts.chinese_font() or pytest.skip(
        "no font with the catalogue's Chinese characters is installed (Debian: fonts-noto-cjk)"
    )


def words(fig: Figure) -> list[str]:
    return [t.get_text() for t in fig.findobj(lambda a: hasattr(a, "get_text")) if t.get_text()]


@pytest.mark.parametrize("name", PICTURES)
def test_without_a_font_a_picture_is_english(name, no_font):
    with using("zh"):
        fig = PICTURES[name]()
        assert not [w for w in (*words(fig), fig.alt_text) if HAN.search(w)]
        if fig.narrow:
            assert not [w for w in words(fig.narrow()) if HAN.search(w)]


@pytest.mark.parametrize("name", PICTURES)
def test_with_a_font_every_character_is_drawn(name, font, caplog):
    with using("zh"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        fig = PICTURES[name]()
        said = [w for w in words(fig) if HAN.search(w)]
        assert len(said) >= 2 and HAN.search(fig.alt_text)
        for picture in (fig, fig.narrow() if fig.narrow else fig):
            assert picture.png(40).startswith(b"\x89PNG")
            left = [w for w in words(picture) if re.search(r"[a-z]{4,} [a-z]{3,} [a-z]{3,}", w)]
            assert not left  # no sentence stays English
    assert not HAN.search(PICTURES[name]().alt_text)
    assert not caplog.records  # a family of one weight is no news to a reader


@pytest.mark.parametrize("dpi", [style.DPI, 70])
@pytest.mark.parametrize("name", ["npu_step, one_hot_gate", "npu_ladder", "graph_rungs"])
def test_no_line_of_chinese_leaves_the_figure(name, dpi, font):
    """Also at another resolution than lines are measured at: this font's widths are whole pixels."""
    with using("zh"):
        fig = PICTURES[name]()
        for picture in (fig, fig.narrow() if fig.narrow else fig):
            picture.set_dpi(dpi)
            with rc_context(picture.look):
                renderer = FigureCanvasAgg(picture).get_renderer()
                picture.draw(renderer)
                said = [t for ax in picture.axes for t in (*ax.texts, ax._left_title)]
                for text in (*said, picture._suptitle, picture._supxlabel):
                    if text and HAN.search(text.get_text()):
                        right = text.get_window_extent(renderer).x1
                        assert right <= picture.bbox.x1, text.get_text()


def test_a_font_without_some_character_is_not_taken(monkeypatch):
    dejavu = font_manager.findfont("DejaVu Sans")
    monkeypatch.setattr(fonts, "FAMILIES", ("DejaVu Sans",))
    monkeypatch.setattr(fonts, "_listed", lambda: {"DejaVu Sans": dejavu})
    fonts.chinese_font.cache_clear()
    try:
        assert fonts.chinese_font() == ""
        monkeypatch.setattr(fonts, "characters", lambda: frozenset("é"))
        fonts.chinese_font.cache_clear()
        assert fonts.chinese_font() == "DejaVu Sans"
        assert not fonts._covers(str(Path(__file__)))  # no font at all
    finally:
        fonts.chinese_font.cache_clear()


def test_all_characters_of_the_catalogue_are_asked_for():
    needed = fonts.characters()
    assert len(needed) > 500 and {"图", "，", "（"} <= needed
    assert all(c in needed for c in catalogue("zh").gettext("Right.") if ord(c) > 0x3000)


def test_every_picture_is_drawn_here_in_chinese_or_named():
    text = "".join(f.read_text(encoding="utf-8") for f in Path(style.__file__).parent.glob("*.py"))
    drawn = set(re.findall(r"^@(?:styled|two_widths)\ndef (\w+)", text, re.MULTILINE))
    assert drawn - {name.partition(",")[0] for name in PICTURES} == MORE


def test_numbers_of_npus_are_traced_in_chinese_too(font):
    """The check reads times and rows out of the very texts that were translated."""
    with using("zh"):
        said = npu_step("one_hot_gate").alt_text
        assert "昇腾" in said and re.search(r"\d µs \[k\d+\]", said)
    assert "Ascend" in npu_step("one_hot_gate").alt_text  # no text is kept in the other language


def test_lines_of_a_count_are_as_wide_in_both_languages():
    english = "a sentence of several words that is longer than one line can be"
    assert style.broken(english, 30) == textwrap.wrap(english, 30)
    chinese = "8 个 rank 之一的共享专家：gate 和 up（宽度为 2,048 中的 256），之前按 8 行。" * 2
    lines = style.broken(chinese, 30)
    assert "".join(lines).replace(" ", "") == chinese.replace(" ", "") and len(lines) > 3
    wide = [sum(1.0 if ord(c) < 0x2E80 else 1.85 for c in line) for line in lines]
    assert max(wide) <= 32 and not [x for x in lines if x[0] in "，。：）"]


def test_frames_speak_chinese_without_any_font(no_font):
    with using("zh"):  # the reader's browser has the font
        for shown in (lanes(), routing_steps(torch.tensor([[2, 0], [1, 2]]))):
            assert HAN.search(shown.title) and not re.search("[A-Za-z]{4,} [a-z]{3,}", shown.title)
            for frame in shown.frames:
                assert (
                    HAN.search(frame.label) and HAN.search(frame.caption) and HAN.search(frame.alt)
                )
                assert HAN.search(frame.svg)


@pytest.mark.filterwarnings("ignore:Glyph")  # only the widths count, also of boxes
def test_lines_break_between_chinese_characters():
    fig = style.LabFigure(figsize=(3.0, 2.0))
    text = "示意图，不是实测：一格是一个位置的一行；从左到右是地址（slot 与 token）。" * 2
    lines = style.wrapped(fig, text, fontsize=11).split("\n")
    assert len(lines) > 2 and "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert not [line for line in lines if line[0] in "，。；：）" or line[-1] in "（"]
    assert style.wrapped(fig, "two words", fontsize=11) == "two words"
