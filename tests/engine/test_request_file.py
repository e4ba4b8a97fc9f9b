"""Files of prompts: their forms, and what is said of a line that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv3_port.engine.request_file import Asked, read_requests
from dsv3_port.errors import PortError

PROMPTS = Path(__file__).parents[2] / "data" / "prompts.json"
CHAT = [{"role": "user", "content": "Hello"}]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_text_is_one_prompt_a_line(tmp_path):
    """Windows' line ends and mark, empty lines, a line separator that is not a line's end."""
    file = written(tmp_path, "p.txt", "\ufeffOne\r\n\r\n  two \u2028 three\r\n\n4")
    found = read_requests(file)
    assert [(a.place, a.prompt) for a in found] == [
        (f"{file}, line 1", "One"),
        (f"{file}, line 3", "  two \u2028 three"),
        (f"{file}, line 5", "4"),
    ]


def test_json_lines(tmp_path):
    values = [
        "a text",
        CHAT,
        {"prompt": "b", "max_new_tokens": 3, "seed": -1},
        {"messages": CHAT, "seed": 7},
    ]
    file = written(tmp_path, "p.jsonl", "\n".join(map(json.dumps, values)) + "\n")
    assert [(a.prompt, a.max_new_tokens, a.seed) for a in read_requests(file)] == [
        ("a text", None, None),
        (CHAT, None, None),
        ("b", 3, -1),
        (CHAT, None, 7),
    ]


def test_json_as_in_data():
    both = json.loads(PROMPTS.read_text())
    assert [a.prompt for a in read_requests(PROMPTS)] == both["completion"]
    found = read_requests(PROMPTS, chat=True)
    assert [a.prompt for a in found] == both["chat"]
    assert found[1] == Asked(f"{PROMPTS}, prompt 2", both["chat"][1])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "", "p.txt: holds no prompt"),
        ("p.txt", "\n \n", "p.txt: holds no prompt"),
        ("p.txt", b"good\n\xff\xfe", "p.txt, line 2: not UTF-8 at byte 1"),
        ("p.jsonl", '"a"\n{"prompt": "b"', "p.jsonl, line 2: not readable as JSON"),
        ("p.jsonl", '{"prompt": "b", "prompt": "c"}', "line 1: .*prompt is listed twice"),
        (
            "p.jsonl",
            '\n{"prompt": "b", "temp": 1}',
            "line 2: unknown field 'temp'; known are prompt",
        ),
        ("p.jsonl", '{"seed": 1}', "line 1: must have a prompt or messages, and has 0"),
        ("p.jsonl", '{"prompt": "a", "messages": []}', "line 1: must have .* has 2 of them"),
        ("p.jsonl", '{"prompt": [1]}', r"line 1: prompt is '\[1\]', not a text"),
        ("p.jsonl", '{"messages": "a"}', "line 1: messages is 'a', not a list of chat messages"),
        ("p.jsonl", '{"messages": []}', "line 1: a chat prompt must be a list of messages"),
        ("p.jsonl", '[{"role": "elf"}]', "line 1: chat message 1: role is 'elf'"),
        ("p.jsonl", "7", "line 1: is '7', not a text, a list of chat messages or an object"),
        ("p.jsonl", '{"prompt": "a", "max_new_tokens": 0}', "line 1: max_new_tokens .*not 0"),
        ("p.jsonl", '{"prompt": "a", "max_new_tokens": true}', "line 1: max_new_tokens .*not True"),
        (
            "p.jsonl",
            '{"prompt": "a", "seed": 1e3}',
            "line 1: seed must be a whole number, not 1000.0",
        ),
        ("p.json", "[]", "p.json: holds no prompt"),
        ("p.json", '{"chat": ["a"]}', "p.json: must hold a list of prompts, or an object"),
        ("p.json", '["a", 7]', "p.json, prompt 2: is '7', not a text"),
        ("p.json", "[", "p.json: not readable as JSON"),
    ],
)
def test_bad_input_names_file_and_line(name, content, words, tmp_path):
    file = written(tmp_path, name, content)
    with pytest.raises(PortError, match=words) as error:
        read_requests(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_no_such_file(tmp_path):
    with pytest.raises(PortError, match=r"none\.txt: cannot be read: No such file"):
        read_requests(tmp_path / "none.txt")
