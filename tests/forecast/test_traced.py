"""No picture and no sentence names an NPU time that no row or citation supports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from matplotlib.text import Text

from dsv3_port.errors import PortError
from dsv3_port.forecast import npu_parts
from dsv3_port.forecast.kernels import CARD, NO_KERNEL, by_id, label
from dsv3_port.forecast.npu_steps import kernels_of
from dsv3_port.forecast.traced import Traced, check, problems, sums, times_of
from dsv3_port.plots import npu_step as pictures
from dsv3_port.steps import STEPS

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted({s.notebook for s in STEPS})


@pytest.mark.parametrize(
    "text",
    [
        "AddRmsNorm takes 4.78 µs [k103].",
        "4.78 µs (4.46–5.52) [k103]",
        "11.4 µs (10.7–15.6) [k81 + k362]",
        "22.1 µs [2 × k209]",
        "4162 µs [k290 × 3.507]",
        "0.77 ms [122 × k181]",
        "a step of 485.9 ms [g15] and 60.6 ms [g5]",
        "waits 41.3 µs (30.0–50.9) [g15]",
        "published 185.6 ms [p2]",
        "nothing is timed here",
    ],
)
def test_supported(text):
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("AddRmsNorm takes 4.78 µs.", "names no row"),
        ("AddRmsNorm takes 4.88 µs [k103].", "4.88 is not what"),
        ("4.78 µs (4.46–5.62) [k103]", "5.62 is not what"),
        ("12.4 µs [k81 + k362]", "12.4 is not what"),
        ("4.78 ms [k103]", "4.78 is not what"),
        ("3 µs [k99999]", "no time in row 'k99999'"),
        ("3 µs [somewhere]", "is not a row"),
        ("3 µs [~guess]", "nothing derived is called 'guess'"),
        ("a link of 3 µs [p13]", "no time in row 'p13'"),
    ],
)
def test_unsupported(text, words):
    assert words in " ".join(problems(text))
    with pytest.raises(PortError, match="an NPU time without a row"):
        check([text])


def test_a_derived_number_needs_its_rows():
    fit = Traced(11.4, "µs", "RmsNorm", ("k362",))
    assert problems("~11.4 µs [~RmsNorm]", [fit]) == []
    assert problems("~12.9 µs [~RmsNorm]", [fit])
    assert problems("~11.4 µs [~RmsNorm]", [Traced(11.4, "µs", "RmsNorm", ())])


def test_times_are_those_of_the_files():
    assert times_of("k103") == [4.78, 4.46, 5.52]
    assert sums("2 × k103 × 0.5") == [4.78, 4.46, 5.52]
    assert times_of("p3") == [45000.0]


@pytest.mark.parametrize("step", [s.id for s in STEPS])
def test_every_step_says_something_and_its_numbers_are_right(step):
    found = kernels_of(step)
    assert found.pairs or any(NO_KERNEL in text for text in found.said)
    for pair in found.pairs:
        for side in (pair.before, pair.after):
            us, low, high = npu_parts.total(side)
            assert low <= us <= high
            text = f"{us:.2f} µs ({low:.2f}–{high:.2f}) [{npu_parts.formula(side)}]"
            assert problems(text, npu_parts.traced([pair])) == []
            for part in side:
                assert part.rows and all(r[0] in "kg" for r in part.rows)
                if part.how != "fitted" and part.rows[0] in by_id():
                    assert part.device == by_id()[part.rows[0]].device


def test_the_table_of_the_analysis_comes_back():
    """Ratios of the analysis that the rows came with, to two places."""
    known = {
        ("add_rms_norm", "decode, 8 tokens"): 2.39,
        ("add_rms_norm", "prefill, 4,096 tokens"): 1.15,
        ("merged_mlp", "decode, 8 tokens"): 1.86,
        ("merged_mlp", "prefill, 4,096 tokens"): 1.48,
        ("gmm_routing", "decode, 8 tokens"): 1.30,
        ("gmm_routing", "decode, 1 token"): 2.65,
        ("mla_low_rank", "decode, 8 tokens"): 6.71,
        ("last_token_head", "prefill, 4,096 tokens"): 10.12,
        ("rope_once", "decode, 1 token"): 61.0,
    }
    for (step, size), ratio in known.items():
        pair = next(p for p in kernels_of(step).pairs if p.size == size)
        assert pair.ratio == pytest.approx(ratio, abs=0.005), (step, size)


def test_no_ratio_across_devices_and_none_below_noise():
    verdicts = {p.what: p.verdict for s in STEPS for p in kernels_of(s.id).pairs}
    cache = [v for what, v in verdicts.items() if "latent cache" in what]
    assert cache == ["two devices: no ratio"]
    dense = [v for what, v in verdicts.items() if "dense layer" in what]
    assert dense == ["1.07×: no difference shown"]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_pictures_carry_label_and_rows(notebook):
    fig = pictures.npu_step(notebook)
    assert label(CARD)[:40] in fig.alt_text and "Not a run of this course" in fig.alt_text
    has_pairs = any(kernels_of(s).pairs for s in pictures.steps_of(notebook))
    assert bool(fig.npu_rows) == has_pairs
    check([t.get_text() for t in fig.findobj(Text)] + [fig.alt_text], fig.npu_derived)


def test_a_picture_with_an_unsupported_time_is_refused(monkeypatch):
    monkeypatch.setattr(pictures, "_value", lambda parts: "3.14 µs [k103]")
    with pytest.raises(PortError, match=r"3.14 is not what \[k103\] says"):
        pictures.npu_step("add_rms_norm")


def test_a_step_that_nothing_covers_says_so():
    text = pictures.npu_step("one_hot_gate").alt_text
    assert NO_KERNEL in text and "before" not in text


def test_unknown_step():
    with pytest.raises(PortError, match="neither a step nor a notebook"):
        pictures.npu_step("warp_drive")


_NPU = re.compile(r"910B|\bA[23]\b|\[[kgfp]\d+|NPU|Ascend|昇腾")


def sentences(text: str) -> list[str]:
    """Sentences and table cells that are about measured NPU kernels; code and tables made by
    ci/tools/readme.py apart."""
    text = re.sub(r"<!-- [\w-]+:begin.*?:end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    parts = re.split(r"(?<=[.!?])\s+|(?<=[。；])\s*|\n\s*\n|\n(?=[|*\-])", text)
    return [p for p in parts if _NPU.search(p)]


def pages() -> list[tuple[str, str]]:
    found = [(f.name, f.read_text(encoding="utf-8")) for f in ROOT.glob("*.md")]
    found += [(f.name, f.read_text(encoding="utf-8")) for f in (ROOT / "docs").glob("*.md")]
    for file in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                found.append((f"{file.name} {cell['id']}", "".join(cell["source"])))
    return found


def test_every_sentence_about_measured_kernels_is_supported():
    from tests.forecast.derived import derived

    wrong = [
        f"{name}: {p}"
        for name, text in pages()
        for s in sentences(text)
        for p in problems(s, derived())
    ]
    assert not wrong, "\n".join(wrong)


def test_the_scan_finds_what_it_should():
    text = "On the 910B4-1 it takes 5 µs.\n\nOn a CPU it takes 5 µs.\n\n| A3 | 7 ms |"
    assert [len(problems(s)) for s in sentences(text)] == [1, 1]
