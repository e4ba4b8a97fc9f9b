"""The pictures of 16 say what they draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from dsv3_port.config import DeepseekV3Config
from dsv3_port.count.step_work import StepWork, step_work
from dsv3_port.errors import PortError
from dsv3_port.plan import PortPlan
from dsv3_port.plots.colours import BLUE, GREEN, ORANGE, PURPLE, VERMILLION
from dsv3_port.plots.one_launch import (
    before_scores,
    int8_cache,
    launches_picture,
    nz_elements,
    nz_picture,
)
from tests.nz_definition import stored
from tests.plots.test_int8 import cost, filled

V3 = DeepseekV3Config.preset("v3-671b")
PAGED = PortPlan.upto("paged_cache")


def steps() -> tuple[StepWork, StepWork]:
    plans = PAGED, PAGED.replace(mla_prolog=True)
    first, second = (step_work(V3, p, world_size=16, batch=8, context=256) for p in plans)
    return first, second


@pytest.mark.parametrize("shape", [(20, 40), (48, 70), (3, 100)])
def test_every_byte_is_where_the_definition_has_it(shape) -> None:
    numbers = np.arange(1, shape[0] * shape[1] + 1).reshape(shape)
    found = nz_elements(*shape).numpy() + 1
    assert np.array_equal(found.reshape(-1), stored(numbers, 32).reshape(-1))


def test_the_picture_of_nz_draws_these_bytes() -> None:
    fig = nz_picture()
    matrix, memory = fig.axes
    drawn = nz_elements()
    lines = sum(int((row >= 0).any()) for row in drawn.flatten(0, 1))
    colours = [to_rgb(c) for c in ("#56B4E9", ORANGE, GREEN, PURPLE)]
    rows = [p for p in memory.patches if p.get_facecolor()[:3] in colours]
    assert len(rows) == lines and sum(p.get_width() for p in rows) == int((drawn >= 0).sum()) == 800
    (there,), (here,) = filled(memory, VERMILLION), filled(matrix, VERMILLION)
    assert (here.get_y(), here.get_x()) == (17, 33)
    fractal, line = divmod(there.get_y(), 17.5)
    assert int(fractal) * 512 + int(line) * 32 + there.get_x() == 1569
    assert "byte 1,569" in {t.get_text() for t in memory.texts}
    assert "[0, 0], [16, 0], [0, 32], [16, 32]" in fig.alt_text and "1248 bytes" in fig.alt_text
    assert fig.png().startswith(b"\x89PNG") and fig.narrow().png().startswith(b"\x89PNG")


def test_a_box_is_a_launch() -> None:
    """At the published sizes twelve of a layer become one, whatever the layer."""
    before, after = steps()
    single, one = before_scores(before, after)
    assert one == ["npu_mla_prolog_v3"] and len(single) == 12
    assert single.count("aten.mm") == 3 and "npu_kv_rmsnorm_rope_cache_v2" in single
    fig = launches_picture(before, after)
    (ax,) = fig.axes
    assert [len(filled(ax, c)) for c in (BLUE, GREEN, ORANGE, PURPLE)] == [3, 4, 5, 1]
    said = {t.get_text() for t in ax.texts}
    assert "single operators: 12 a layer, 732 in 61 layers" in said
    assert "12 of them; with npu_mla_prolog_v3 1" in fig.alt_text
    assert fig.narrow().png().startswith(b"\x89PNG")
    for same in ((before, before), (after, after)):
        with pytest.raises(PortError, match="with mla_prolog and without"):
            launches_picture(*same)


def test_bytes_and_errors_of_the_cache() -> None:
    costs = {"cache as it is": cost(0.0), "int8 cache": cost(0.02)}
    sizes = {"cache as it is": (1024, 128), "int8 cache": (512, 128)}
    fig = int8_cache(sizes, costs)
    bars, stream = fig.axes
    assert [p.get_width() for p in filled(bars, BLUE)] == [1024, 512]
    assert {"1152", "640"} <= {t.get_text() for t in bars.texts}
    assert list(stream.lines[1].get_ydata()) == pytest.approx([2.0, 4.0, 2.0, 6.0])
    assert "cache as it is 1152; int8 cache 640" in fig.alt_text and "37 positions" in fig.alt_text
    assert fig.narrow().png().startswith(b"\x89PNG")
    with pytest.raises(PortError, match="int8_cache"):
        int8_cache({}, costs)


def test_elements_of_a_layer_are_found_once() -> None:
    """Layers of one kind, and of two: `layer` gives one of them."""
    plan = PAGED.replace(mla_prolog=True)
    dense = V3.replace(num_hidden_layers=2, first_k_dense_replace=2)
    for config in (dense, dense.replace(first_k_dense_replace=1), V3):
        work = step_work(config, plan, world_size=16, context=64)
        names = work.layer("attention")
        assert names.count("npu_mla_prolog_v3") == 1 and names[0] == "npu_mla_prolog_v3"
        assert work.layer("nowhere") == []


def test_zeros_are_no_elements() -> None:
    drawn = nz_elements(17, 33)
    assert drawn.shape == (4, 16, 32) and int((drawn >= 0).sum()) == 17 * 33
    assert sorted(drawn[drawn >= 0].tolist()) == list(range(17 * 33))
    assert torch.equal(drawn[0, 0], torch.arange(32, dtype=torch.int32))
