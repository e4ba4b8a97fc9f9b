"""What a learner reads in a terminal follows DSV3_LANG; names, values and --help stay."""

from __future__ import annotations

import re

import pytest

from dsv3_port import messages
from dsv3_port.cli.main import main
from dsv3_port.paths import tiny

ENGLISH = re.compile(r"[A-Za-z]{3,}(?: [a-z]{2,}){2}")  # three words in a row
HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture
def said(monkeypatch, capsys):
    """What a command prints where the reader's language is Chinese."""

    def run(*words: str) -> str:
        monkeypatch.setenv("DSV3_LANG", "zh")
        try:
            assert main(words) == 0
        finally:
            messages.use("en")
        return capsys.readouterr().out

    return run


FORECAST = "plan --forecast a2 --world-size 8,32"
WHAT_IF = "plan --what-if --world-size 7,8,32"


@pytest.mark.parametrize(
    "command",
    ["settings", "judge list", "plan", "plan --steps", "settings --markdown", FORECAST, WHAT_IF],
)
def test_tables_and_lists(command, said):
    text = said(*command.split())
    assert HAN.search(text)
    assert not [line for line in text.splitlines() if ENGLISH.search(line)]


def test_a_text_and_what_it_took(said):
    prompt = ["--prompt", "7 plus 5 is", "--max-new-tokens", "2", "--device", "cpu"]
    lines = said("infer", "--model-dir", str(tiny()), *prompt).splitlines()
    assert "首 token 时延" in "".join(lines) and "权重，MiB" in "".join(lines)
    assert not [line for line in lines[2:] if ENGLISH.search(line)]


def test_a_forecast_still_says_that_it_is_one(said):
    assert "FORECAST" in said(*FORECAST.split()).splitlines()[0]
    assert "不是实测" in said(*WHAT_IF.split()).splitlines()[0]
