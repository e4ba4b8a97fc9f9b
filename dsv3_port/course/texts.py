"""The text of two models beside each other, with the first other token marked."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from ..engine.generate import Generation, generate
from ..messages import told, tr
from ..model.decoder import DeepseekV3
from .show import Shown
from .timer import Late, limit


def text_table(
    model: DeepseekV3,
    wrong: DeepseekV3 | None,
    code: str,
    tokenizer: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    name: str,
) -> Shown:
    """Prompts and greedy text of `model`, whose column is called by `code`; of `wrong` beside it,
    whose column is called by `name`."""
    right = generate(model, tokenizer, prompts, max_new_tokens)
    code, name = told(code), told(name)
    if wrong is None:
        return table_of(
            [tr("prompt"), tr("text, {whose}").format(whose=code)],
            [[(g.prompt, ""), (g.text, "")] for g in right],
        )
    try:
        with limit(60.0):
            other = generate(wrong, tokenizer, prompts, max_new_tokens)
    except (Exception, Late) as error:  # numbers that are none, other shapes
        said = tr("(no text: {error})").format(error=str(error).splitlines()[0])
        rows = [[(g.prompt, ""), (g.text, ""), ("", said)] for g in right]
    else:
        rows = [
            [(a.prompt, ""), (a.text, ""), parted(a, b, tokenizer)]
            for a, b in zip(right, other, strict=True)
        ]
    heads = [tr("text, {whose}").format(whose=whose) for whose in (code, name)]
    return table_of([tr("prompt"), *heads], rows)


def parted(a: Generation, b: Generation, tokenizer: Any) -> tuple[str, str]:
    """The text of b: what it shares with a, and the rest from the first other token on."""
    at = next(
        (i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y),
        min(len(a.token_ids), len(b.token_ids)),
    )
    if a.token_ids == b.token_ids:
        return b.text, ""
    shared = tokenizer.decode(b.token_ids[:at], skip_special_tokens=True)
    whole = b.text
    if not whole.startswith(shared):
        return "", whole
    return shared, whole[len(shared) :] or tr(" (ends here)")


def table_of(headers: list[str], rows: list[list[tuple[Any, str]]]) -> Shown:
    title = tr("from the first other token on")

    def cell(same: Any, other: str) -> str:
        mark = (
            f'<mark title="{title}" style="background:rgba(213,94,0,.17);color:'
            f'inherit"><b>▸</b>{html.escape(other)}</mark>'
            if other
            else ""
        )
        return f'<td style="text-align:left">{html.escape(str(same))}{mark}</td>'

    head = "".join(f'<th style="text-align:left">{html.escape(h)}</th>' for h in headers)
    body = "".join(f"<tr>{''.join(cell(*c) for c in row)}</tr>" for row in rows)
    lines = [" | ".join(headers), " | ".join("---" for _ in headers)]
    lines += [
        " | ".join(_plain(same) + (f"▸{_plain(other)}" if other else "") for same, other in row)
        for row in rows
    ]
    return Shown(
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        "\n".join(f"| {line} |" for line in lines),
    )


def _plain(text: Any) -> str:
    line = " ".join(str(text).split(" ")).replace("\n", " ")
    for sign in "\\|*_`<":
        line = line.replace(sign, "\\" + sign)
    return line
