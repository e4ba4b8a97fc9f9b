"""A chat template is a stranger's program; chat messages come in every legal kind and in others."""

from __future__ import annotations

import json
import os

import pytest
import transformers

from dsv3_port import PortError, load_tokenizer
from dsv3_port.engine import chat
from dsv3_port.engine.tokenizer import encode
from dsv3_port.paths import tiny
from tests.weights.spoil import copy, edit_json

USER = [{"role": "user", "content": "Hello"}]


def with_template(tmp_path, template):
    m = copy(tmp_path / "m")
    edit_json(m / "tokenizer_config.json", chat_template=template)
    return load_tokenizer(m)


@pytest.mark.parametrize(
    "template,message",
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            "refuses the messages .*roles must alternate",
        ),
        ("{% if %}{{ messages }", "refuses the messages or is broken: TemplateSyntaxError"),
        ("{{ messages[7]['content'] }}", "refuses the messages or is broken"),
        (
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "refuses the messages or is broken: SecurityError",
        ),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "did not end",
        ),
        (
            "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
            "wrote more|more memory|MemoryError",
        ),
        ("{{ 'x' * 10**11 }}", "more memory|MemoryError"),
        ("{{ 9**(9**(9**9)) }}", "did not end|refuses"),
    ],
)
def test_a_template_that_goes_wrong(template, message, tmp_path, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 2.0)
    tokenizer = with_template(tmp_path, template)
    started, fork = [], os.fork

    def watched() -> int:
        started.append(fork())
        return started[-1]

    monkeypatch.setattr(os, "fork", watched)
    with pytest.raises(PortError, match=message):
        encode(tokenizer, [USER])
    (child,) = started
    with pytest.raises(ProcessLookupError):  # nothing runs on, nothing is left to be waited for
        os.kill(child, 0)


def test_messages_of_every_legal_kind(tmp_path):
    # `or ''`: transformers before 5.24 hands None on, later ones leave the key out
    template = (
        "{% for m in messages %}[{{ m.role }}:{{ m.content or '' }}{{ m.tool_calls }}]{% endfor %}"
    )
    tokenizer = with_template(tmp_path, template)
    prompt = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "1"},
    ]
    (text,) = chat.render(tokenizer, [chat.check_messages(prompt)])
    assert text.startswith("[system:s][user:ab][assistant:[{") and text.endswith("[tool:1]")


@pytest.mark.parametrize(
    "prompt,message",
    [
        ([], "one at least"),
        (["hello"], "message 1 is 'hello'"),
        ([{"content": "x"}], "role is None"),
        ([{"role": "root", "content": "x"}], "role is 'root'"),
        ([{"role": "user"}], "content is missing"),
        ([{"role": "user", "content": None}], "content is missing"),
        ([{"role": "user", "content": 7}], "content is 7, not a text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a part that is not text"),
        ([{"role": "assistant", "content": "x", "tool_calls": "f"}], "tool_calls must be a list"),
        ([*USER, None], "message 2 is None"),
    ],
)
def test_messages_of_every_illegal_kind(prompt, message, tmp_path):
    with pytest.raises(PortError, match=message):
        encode(with_template(tmp_path, "{{ messages }}"), [prompt])


def test_half_a_character():
    tokenizer = load_tokenizer(tiny())
    for prompt in ("Once \ud800 upon", [{"role": "user", "content": "\udfff"}]):
        with pytest.raises(PortError, match="prompt 1 holds half of a character"):
            encode(tokenizer, [prompt])


@pytest.mark.parametrize("bos", [True, False])
def test_bos_as_the_settings_say(bos, tmp_path):
    m = copy(tmp_path / "m")
    edit_json(
        m / "tokenizer.json",
        post_processor={
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        },
    )
    edit_json(
        m / "tokenizer_config.json",
        tokenizer_class="LlamaTokenizerFast",
        add_bos_token=bos,
        add_eos_token=False,
        legacy=True,
        backend=None,
    )
    theirs = transformers.AutoTokenizer.from_pretrained(m, local_files_only=True, add_bos_token=bos)
    want = theirs("Once upon a time")["input_ids"]
    assert encode(load_tokenizer(m), ["Once upon a time"]) == [want] and (want[0] == 0) == bos


@pytest.mark.parametrize("text", ["[]", "{", json.dumps({"add_bos_token": "yes"}), "[" * 10**5])
def test_settings_that_are_none(text, tmp_path):
    m = copy(tmp_path / "m")
    (m / "tokenizer_config.json").write_text(text)
    with pytest.raises(PortError, match="tokenizer_config.json"):
        load_tokenizer(m)
