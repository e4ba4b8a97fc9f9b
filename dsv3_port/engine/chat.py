"""Chat messages through a checkpoint's template, which is a stranger's program: in transformers'
sandbox, in a process of its own, with a limit on time, memory and what it may say."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from collections.abc import Sequence
from typing import Any

from ..errors import PortError

SECONDS = 10.0  # for the templates of one call
MEMORY = 1 << 30  # bytes beside what the process has
LONGEST = 16 << 20  # bytes of text
_ROLES = ("system", "user", "assistant", "tool", "developer")


def check_messages(prompt: Any) -> list[dict[str, Any]]:
    """Messages of the kinds that templates know: content is text, null beside tool calls, or a list
    of text parts, which are joined."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        raise PortError("a chat prompt must be a list of messages, with one at least")
    made = []
    for number, message in enumerate(prompt):
        where = f"chat message {number + 1}"
        if not isinstance(message, dict):
            raise PortError(f"{where} is {message!r:.60}, not an object with role and content")
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise PortError(f"{where}: role is {role!r:.60}; it must be one of {', '.join(_ROLES)}")
        if isinstance(content, list):
            if not all(
                isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str)
                for p in content
            ):
                raise PortError(
                    f"{where}: content holds a part that is not text; only text is read"
                )
            content = "".join(p["text"] for p in content)
        if content is None and not message.get("tool_calls"):
            raise PortError(
                f"{where}: content is missing; only a message with tool_calls may lack it"
            )
        if content is not None and not isinstance(content, str):
            raise PortError(f"{where}: content is {content!r:.60}, not a text")
        calls = message.get("tool_calls")
        if calls is not None and not (
            isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
        ):
            raise PortError(f"{where}: tool_calls must be a list of objects")
        made.append({**message, "content": content})
    return made


def render(tokenizer: Any, prompts: Sequence[list[dict[str, Any]]]) -> list[str]:
    """Each prompt as the template writes it, ready for the answer. PortError where the template
    refuses, breaks, or does not end."""
    if not tokenizer.chat_template:
        raise PortError("chat mode: this tokenizer has no chat template; use plain prompts")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _child(tokenizer, prompts, writing)
    os.close(writing)
    try:
        text = _read(reading)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if text is None:
        raise PortError(
            f"the chat template did not end within {SECONDS:.0f} s, or wrote more than {LONGEST >> 20} MiB"
        )
    if not text:
        raise PortError("the chat template took more memory than it may")
    kind, value = json.loads(text)
    if kind != "texts":
        raise PortError(
            f"the chat template of this tokenizer refuses the messages or is broken: {value}"
        )
    return list(value)


def _child(tokenizer: Any, prompts: Sequence[list[dict[str, Any]]], writing: int) -> None:
    """Never returns. Nothing of the parent's is flushed or closed."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            now = int(stream.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    except (OSError, ValueError):
        pass  # no /proc: the limit on time stays
    try:
        texts = [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
            for p in prompts
        ]
        said = json.dumps(["texts", texts])
    except BaseException as error:  # jinja2's kinds, and whatever the template provokes
        said = json.dumps(
            ["error", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"]
        )
    data = memoryview(said.encode())
    try:
        while data:
            data = data[os.write(writing, data) :]
    finally:
        os._exit(0)


def _read(reading: int) -> bytes | None:
    """Everything until the other end closes; None where time or length are over."""
    end, parts, size = time.monotonic() + SECONDS, [], 0
    while True:
        left = end - time.monotonic()
        if left <= 0 or size > LONGEST or not select.select([reading], [], [], left)[0]:
            return None
        part = os.read(reading, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
