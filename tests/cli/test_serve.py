"""`dsv3-port serve`: JSON Lines in the file's order on stdout or in a file, counts on stderr, and one
sentence with file and line for what cannot run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dsv3_port import cli
from dsv3_port.engine import continuous

TINY = str(Path(__file__).parents[2] / "data" / "tiny-dsv3")
WORDS = ["serve", "--model-dir", TINY, "--device", "cpu", "--block-size", "16"]


def run(folder: Path, content: str, *words: str, name: str = "p.txt") -> int:
    file = folder / name
    file.write_text(content, encoding="utf-8")
    return cli.main([*WORDS, "--prompts", str(file), "--max-new-tokens", "6", *words])


def test_texts_on_stdout_and_counts_on_stderr(tmp_path, capsys):
    prompts = ["Once upon a time", "7 plus 5 is", "In his bag was a silver bell."]
    assert run(tmp_path, "\n".join(prompts), "--slots", "2") == 0
    seen = capsys.readouterr()
    rows = [json.loads(line) for line in seen.out.splitlines()]
    assert [(r["number"], r["prompt"]) for r in rows] == list(enumerate(prompts, 1))
    assert rows[1]["text"].startswith(" 12.")
    said = seen.err.splitlines()[-5:]
    assert said[0] == "deepseek_v3: 1 rank, 2 slots, eager, float32, greedy"
    assert said[1] == "3 requests, 20 prompt tokens, 18 new"
    assert said[2].startswith("10 decode steps, 75% of their rows had a request; in batches of 2")
    assert said[3:] == [
        "graphs: none, eager",
        "blocks of 16: 2 of 2 in use at most, all given back",
    ]
    assert "requests: 3/3" in seen.err


def test_a_file_is_whole_or_not_there(tmp_path, capsys, monkeypatch):
    """Four slots by themselves; a run that fails in between leaves what was there before."""
    out = tmp_path / "out.jsonl"
    lines = '{"prompt": "Once", "max_new_tokens": 2}\n["no"]\n'
    assert run(tmp_path, lines, "--out", str(out), name="p.jsonl") == 2 and not out.exists()
    assert "p.jsonl, line 2: chat message 1" in capsys.readouterr().err
    lines = '{"prompt": "Once", "max_new_tokens": 2}\n"The cat"\n'
    assert run(tmp_path, lines, "--out", str(out), name="p.jsonl") == 0
    before, seen = out.read_text(), capsys.readouterr()
    assert [len(json.loads(row)["token_ids"]) for row in before.splitlines()] == [2, 6]
    assert seen.out == "" and ", 4 slots, " in seen.err

    step, left = continuous.ContinuousBatch.step, [3]

    def fails(self):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(continuous.ContinuousBatch, "step", fails)
    assert run(tmp_path, lines, "--out", str(out), name="p.jsonl") == 130
    assert out.read_text() == before and [f.name for f in tmp_path.glob("*out*")] == ["out.jsonl"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "words", "named"),
    [
        ("", (), "p.txt: holds no prompt"),
        ("a\n" + "long " * 40, ("--input-max-len", "12"), "p.txt, line 2: a prompt has"),
        ("a", ("--max-new-tokens", "1024"), "p.txt, line 1: a prompt of"),
        ("a", ("--blocks", "0"), "a paged cache of 0 blocks"),
        ("a\nb c", ("--blocks", "1", "--max-new-tokens", "40"), "p.txt, line 1: .* has 1: give it"),
        ("a", ("--slots", "0"), "BATCH_SIZE must be 1 or more, not 0"),
        ("a", ("--block-size", "24"), "BLOCK_SIZE must be a multiple of 16"),
        ("a", ("--plan", "upto:6.1"), "the paged cache, and this plan's cache is 'fixed'"),
        ("a", ("--out", "no/where.jsonl"), "no/where.jsonl: not a file in a folder that exists"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(content, words, named, tmp_path, capsys):
    assert run(tmp_path, content, *words) == 2
    seen = capsys.readouterr()
    assert seen.err.startswith("dsv3-port: ") and len(seen.err.splitlines()) == 1
    assert not seen.out
    assert re.search(named, seen.err)


def test_the_help_says_what_it_is_not(capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "no HTTP server" in said and "https://docs.vllm.ai/projects/ascend" in said
