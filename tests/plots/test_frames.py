"""The two widgets: what their frames show and say, and that they work without script, style or
kernel."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dsv3_port.errors import PortError
from dsv3_port.plots.frames import Frame, Frames
from dsv3_port.plots.lanes import lanes, run_lanes
from dsv3_port.plots.routing_steps import routing_steps
from dsv3_port.plots.style import CSS_CLASS, ON_DARK

sys.path.insert(0, str(Path(__file__).parents[2] / "ci" / "tools"))
import browser

WIDGETS = {"lanes": lanes, "routing": routing_steps}


def test_the_device_waits_where_launches_are_longer():
    lane = run_lanes(6, launch=2.0, kernel=0.5)
    assert lane.end == 12.5 and lane.busy == 3.0 and lane.waited == 7.5
    assert all(
        start == launched for (_, launched), (start, _) in zip(lane.host, lane.device, strict=True)
    )


def test_the_queue_fills_where_kernels_are_longer():
    lane = run_lanes(4, launch=1.0, kernel=3.0)
    assert lane.waited == 0 and lane.end == 13.0
    assert [end - start for start, end in lane.queue] == [0, 2, 4, 6]
    assert all(a[1] == b[0] for a, b in pairwise(lane.device))


def test_a_graph_is_one_launch():
    lane = run_lanes(5, launch=2.0, kernel=0.5, graph=True)
    assert len(lane.host) == 1 and len(lane.device) == 5 and lane.end == 4.5 and lane.waited == 0


def test_frames_of_the_lanes_say_who_waits():
    prefill, decode, graph = lanes().frames
    assert prefill.label == "prefill: the queue fills" and "device sets the time" in prefill.caption
    assert (
        decode.label == "decode step: the device waits" and "host sets the time" in decode.caption
    )
    assert graph.label.endswith("one launch") and "done after 6.8" in graph.caption
    assert "the queue fills" in lanes(decode=5.0).frames[1].label
    done = [
        re.search(r"done after (\d+\.\d+)", lanes(decode=d).frames[1].caption)[1]
        for d in (0.8, 0.4)
    ]
    assert done == ["12.8", "12.4"], "half the kernels' time does not halve the step"


def test_the_lanes_are_called_an_illustration():
    text = str(lanes())
    assert "an illustration, not a measurement" in text and "µs" not in text and "ms" not in text


@pytest.mark.parametrize("bad", [{"operators": 1}, {"launch": 0.0}, {"decode": float("nan")}])
def test_lanes_that_cannot_be_drawn_are_refused(bad):
    with pytest.raises(PortError, match="lanes draws 2 to 12"):
        lanes(**bad)


def test_the_stepper_sorts_as_torch_does():
    idx = torch.tensor([[3, 1], [1, 0], [0, 3]])
    said = [frame.caption for frame in routing_steps(idx).frames]
    order = idx.flatten().argsort(stable=True).tolist()
    assert str(order) in said[2] and str([c // 2 for c in order]) in said[2]
    assert "[2, 4, 4, 6]" in said[3], "an expert without rows has the end of the one before"


def test_every_row_of_the_stepper_is_drawn_where_it_belongs():
    """Row r of the sorted column holds choice order[r], in frames 3, 4 and 5."""
    idx = torch.tensor([[2, 0], [1, 2], [2, 3]])
    order = idx.flatten().argsort(stable=True).tolist()
    want = [f"token {c // 2} · {idx.flatten()[c]}" for c in order]
    frames = routing_steps(idx).frames
    for frame, column in ((frames[2], 1), (frames[3], 0), (frames[3], 1), (frames[4], 0)):
        rows = [
            t.text for t in ET.fromstring(frame.svg).iter() if (t.text or "").startswith("token ")
        ]
        rows = [t for t in rows if "·" in t and t != "token · expert"]
        assert rows[column * 6 : column * 6 + 6] == want


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(9, 2), torch.tensor([[4, 0]])])
def test_a_routing_that_cannot_be_drawn_is_refused(bad):
    with pytest.raises(PortError, match="routing_steps"):
        routing_steps(bad.long())


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_needs_no_script_and_has_texts(name):
    widget = WIDGETS[name]()
    html = widget._repr_html_()
    assert "<script" not in html and "http" not in html.replace("http://www.w3.org", "")
    pictures = re.findall(r'<img class="(.*?)" alt="(.*?)"', html)
    assert [c for c, _ in pictures] == [CSS_CLASS] * len(widget.frames)
    assert all(len(alt) > 25 for _, alt in pictures)
    assert len(re.findall(r"<figcaption>", html)) == len(widget.frames)
    assert html.count(" checked>") == 1 and "data-lm-suppress-shortcuts" in html
    assert "prefers-reduced-motion: no-preference" in html
    bundle = widget._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/svg+xml", "text/plain"}
    assert all(frame.caption in bundle["text/plain"] for frame in widget.frames)
    ET.fromstring(bundle["image/svg+xml"])


def test_two_of_a_kind_have_names_of_their_own():
    names = [set(re.findall(r'(?:id|name|for)="(.*?)"', lanes()._repr_html_())) for _ in range(2)]
    assert not names[0] & names[1] and len(names[0]) == 4


def test_titles_and_labels_are_escaped():
    html = Frames("<b>", [Frame("a<i>", "", 9, '"x"', "c<script>")])._repr_html_()
    assert "<script" not in html and "a<i>" not in html and 'alt="&quot;x&quot;"' in html


def _dark(colour: tuple[float, float, float]) -> tuple[float, ...]:
    """What the filter of dark pages makes of a colour, 0 to 1, by the CSS filter effects' matrices."""
    amount, saturate, bright = (
        float(re.search(rf"{word}\(([\d.]+)\)", ON_DARK)[1])
        for word in ("invert", "saturate", "brightness")
    )
    assert "hue-rotate(180deg)" in ON_DARK
    r, g, b = (amount + v * (1 - 2 * amount) for v in colour)
    grey = 0.213 * r + 0.715 * g + 0.072 * b
    turned = [2 * grey - v for v in (r, g, b)]  # half a turn round grey
    grey = 0.213 * turned[0] + 0.715 * turned[1] + 0.072 * turned[2]
    return tuple(min(max((grey + saturate * (v - grey)) * bright, 0.0), 1.0) for v in turned)


def _light(colour: tuple[float, ...]) -> float:
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str, dark: bool) -> float:
    both = []
    for text in (a, b):
        text = {"white": "#ffffff"}.get(text, text).lstrip("#")
        rgb = tuple(int(text[k : k + 2], 16) / 255 for k in (0, 2, 4))
        both.append(_light(_dark(rgb) if dark else rgb))
    return (max(both) + 0.05) / (min(both) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", WIDGETS)
def test_text_has_contrast_on_both_themes(name, dark):
    for frame in WIDGETS[name]().frames:
        pairs = set(re.findall(r'<text [^>]*fill="(.*?)" stroke="(.*?)"', frame.svg))
        assert pairs
        for ink, ground in pairs:
            assert contrast(ink, ground, dark) >= 4.5, (frame.label, ink, ground)


@pytest.mark.skipif(browser.find() is None, reason=browser.MISSING)
def test_keys_choose_the_frame_in_a_browser(tmp_path):
    two = lanes()._repr_html_() + routing_steps()._repr_html_()
    head = '<!DOCTYPE html><html lang="en"><head><title>t</title><meta name="viewport" content="width=device-width">'
    (tmp_path / "a.html").write_text(f"{head}</head><body>{two}</body></html>", encoding="utf-8")
    bare = re.sub(r"<style>.*?</style>", "", two, flags=re.DOTALL)
    (tmp_path / "b.html").write_text(f"{head}</head><body>{bare}</body></html>", encoding="utf-8")
    seen = "[...document.querySelectorAll('figure')].map(f => +(f.offsetHeight > 0)).join('')"
    with browser.browser() as page:
        page.size(360)
        page.open((tmp_path / "a.html").as_uri())
        assert page.run(seen) == "10010000"
        page.press("Tab")
        page.press("ArrowDown", 40)
        assert page.run(seen) == "01010000"
        page.press("Tab")
        for _ in range(4):
            page.press("ArrowRight", 39)
        assert page.run(seen) == "01000001"
        assert page.run("document.scrollingElement.scrollWidth") <= 360
        page.open((tmp_path / "b.html").as_uri())
        assert page.run(seen) == "11111111"
