"""Pictures of NPU kernels and of the forecast are legible, on a phone too: nothing leaves the figure, no
text is too small, texts do not overlap each other."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dsv3_port.config import DeepseekV3Config
from dsv3_port.forecast.checks import cited_checks
from dsv3_port.forecast.roofline import forecast_ladder as forecasts
from dsv3_port.plots.colours import SMALL
from dsv3_port.plots.forecast import forecast_checks, forecast_ladder, forecast_parts
from dsv3_port.plots.npu_forward import npu_forward
from dsv3_port.plots.npu_ladder import npu_ladder
from dsv3_port.plots.npu_step import npu_step
from dsv3_port.steps import STEPS

V3 = DeepseekV3Config.preset("v3-671b")
FIGURES = {s.notebook: lambda n=s.notebook: npu_step(n) for s in STEPS}
FIGURES |= {
    "forward": npu_forward,
    "ladder": lambda: npu_ladder(V3, (8, 32), (1, 8, 32)),
    "forecast": lambda: forecast_ladder(forecasts(V3, "a3", world_size=32, batch=16)),
    "parts": lambda: forecast_parts(forecasts(V3, "a3", world_size=32, phases=["decode"])),
    "checks": lambda: forecast_checks(cited_checks()),
}
FIGURES |= {f"{n}, phone": lambda draw=draw: draw().narrow() for n, draw in FIGURES.items()}
FIGURES["ladder, phone"] = lambda: npu_ladder(V3, (32,), (1, 8)).narrow()  # fewer panels, as tall


@pytest.fixture(scope="module", params=list(FIGURES))
def drawn(request):
    fig = FIGURES[request.param]()
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    return fig, renderer


def texts(fig):
    own = [t for ax in fig.axes for t in [*ax.texts, ax._left_title, ax.xaxis.label]]
    return [t for t in [*own, fig._suptitle, fig._supxlabel] if t.get_text()]


def test_nothing_leaves_the_figure(drawn):
    fig, renderer = drawn
    for text in texts(fig):
        extent = text.get_window_extent(renderer)
        assert extent.x0 >= fig.bbox.x0 - 2 and extent.x1 <= fig.bbox.x1 + 2, text.get_text()
        assert extent.y0 >= fig.bbox.y0 - 2 and extent.y1 <= fig.bbox.y1 + 2, text.get_text()


def test_no_text_is_too_small(drawn):
    assert all(t.get_fontsize() >= SMALL for t in texts(drawn[0]))


@pytest.mark.parametrize("name", ["forward", "checks"])
def test_a_phone_shows_the_same_at_9_pixels_or_more(name):
    """A page of 360 CSS pixels leaves a picture 320 of them at least."""
    fig = FIGURES[name]()
    narrow = fig.narrow()
    assert narrow.alt_text == fig.alt_text and narrow.npu_rows == fig.npu_rows
    assert min(t.get_fontsize() for t in texts(narrow)) / 72 * 320 / narrow.get_figwidth() >= 9
    assert "<picture><source media=" in fig._repr_mimebundle_()[0]["text/html"]


def test_texts_do_not_overlap(drawn):
    fig, renderer = drawn
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts(fig)]
    for (a, x), (b, y) in itertools.combinations(boxes, 2):
        width = min(x.x1, y.x1) - max(x.x0, y.x0)
        height = min(x.y1, y.y1) - max(x.y0, y.y0)
        assert width < 3 or height < 3, f"{a!r} and {b!r} overlap"
