"""The pictures of 15 say what they draw."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_rgb

from dsv3_port.check.int8_costs import MatrixError
from dsv3_port.check.quality import Quality
from dsv3_port.errors import PortError
from dsv3_port.plots.colours import BLUE, GREEN, LIGHT, ORANGE, SKY
from dsv3_port.plots.int8 import int8_errors, scales_outside


def filled(ax, colour):
    return [
        p for p in ax.patches if p.get_facecolor()[:3] == to_rgb(colour) and p.get_facecolor()[3]
    ]


def test_every_code_scale_and_sum_is_drawn_and_is_the_worked_example():
    """The numbers of the reference: computed here by the package, known from elsewhere."""
    fig = scales_outside()
    parts, product = fig.axes
    assert [len(filled(parts, c)) for c in (SKY, ORANGE, GREEN)] == [16, 2, 2]
    assert [len(filled(product, c)) for c in (LIGHT, ORANGE, GREEN)] == [4, 2, 2]
    said = {t.get_text() for t in (*parts.texts, *product.texts)}
    assert {"32", "-64", "16", "127", "95", "-127", "64"} <= said
    assert {"12,720", "11,537", "23,233", "-8,128"} <= said  # sums in int32
    assert {"3.1546", "0.5722", "11.5236", "-0.8063", "3.1250", "0.5750"} <= said
    assert "[[12720, 11537], [23233, -8128]]" in fig.alt_text
    assert fig.png().startswith(b"\x89PNG") and fig.narrow().png().startswith(b"\x89PNG")


ERRORS = [
    MatrixError(0, "q_a", 0.01, 0.02, 0.022),
    MatrixError(1, "q_a", 0.03, 0.04, 0.05),
    MatrixError(0, "down", 0.005, 0.09, 0.0902),
]


def cost(off: float) -> Quality:
    stages = {"model.embed_tokens": 0.0, "model.layers.0": off, "model.layers.1": 2 * off}
    return Quality(37, (2.0, 2.1), 0.9, 3 * off, 0.1, stages | {"model.norm": off}, {})


def test_bars_are_means_and_dots_are_layers():
    fig = int8_errors(ERRORS, {"int8 weights": cost(0.01), "W8A8": cost(0.02)})
    bars, stream = fig.axes
    for colour, widths in ((BLUE, [2.0, 0.5]), (ORANGE, [3.0, 9.0])):
        assert [p.get_width() for p in filled(bars, colour)] == pytest.approx(widths)
    dots = [tuple(line.get_xdata()) for line in bars.lines]
    assert [len(d) for d in dots] == [2, 2, 1, 1] and dots[0] == pytest.approx((1.0, 3.0))
    lines = [tuple(line.get_ydata()) for line in stream.lines]
    assert lines[0] == pytest.approx((1.0, 2.0, 1.0, 3.0))
    assert lines[1] == pytest.approx((2.0, 4.0, 2.0, 6.0))
    assert [t.get_text() for t in stream.get_xticklabels()] == [
        "layer 0",
        "layer 1",
        "norm",
        "logits",
    ]
    assert "q_a 2.00 / 3.00; down 0.50 / 9.00" in fig.alt_text and "37 positions" in fig.alt_text
    assert "W8A8: 2.00, 4.00, 2.00, 6.00" in fig.alt_text
    assert fig.png().startswith(b"\x89PNG") and fig.narrow().png().startswith(b"\x89PNG")


def test_nothing_to_draw_is_refused():
    with pytest.raises(PortError, match="no errors given"):
        int8_errors([], {"W8A8": cost(0.01)})
