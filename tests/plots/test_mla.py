"""The pictures of notebook 02 draw for every size and carry their alternative text."""

from __future__ import annotations

import pytest

from dsv3_port.config import DeepseekV3Config
from dsv3_port.plots.mla import absorb_picture, kv_b_split


@pytest.mark.parametrize("draw", [absorb_picture, kv_b_split])
@pytest.mark.parametrize("preset", ["tiny", "v3-671b"])
def test_draws(draw, preset):
    fig = draw(DeepseekV3Config.preset(preset))
    assert fig.png().startswith(b"\x89PNG") and "w_k" in fig.alt_text


def test_split_of_one_head_has_no_dots():
    config = DeepseekV3Config.preset("tiny").replace(num_attention_heads=1)
    assert "…" not in [t.get_text() for t in kv_b_split(config).axes[0].texts]
