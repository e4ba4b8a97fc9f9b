"""Exercise of 09_many_cards: one number of ranks.

A defect of the old sample (Ascend/torchair, npu_tuned_model/llm/deepseek_v3): the splitter's
argument and the variable WORLD_SIZE both said how many ranks there are, and nothing compared them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import Exercise

Ranks = Callable[[Mapping[str, str], "int | None"], Any]
REFUSED = "refused"
CASES: tuple[tuple[dict[str, str], int | None], ...] = (
    ({}, 2),
    ({"WORLD_SIZE": "2"}, 2),
    ({"WORLD_SIZE": "4"}, 2),
    ({"WORLD_SIZE": "1"}, 2),
    ({"WORLD_SIZE": "3"}, 6),
    ({"WORLD_SIZE": "4"}, 6),
    ({"WORLD_SIZE": "4"}, None),
    ({}, None),
)


def _refuse(asked: object, cut_for: object) -> None:
    raise ValueError(f"weights cut for {cut_for} ranks, WORLD_SIZE is {asked}")


def _right(environment: Mapping[str, str], cut_for: int | None) -> int:
    asked = int(environment.get("WORLD_SIZE", cut_for or 1))
    if cut_for and asked != cut_for:
        _refuse(asked, cut_for)
    return asked


def _variable_alone(environment: Mapping[str, str], cut_for: int | None) -> int:
    return int(environment.get("WORLD_SIZE", 1))


def _variable_first(environment: Mapping[str, str], cut_for: int | None) -> int:
    return int(environment.get("WORLD_SIZE", cut_for or 1))


def _folder_first(environment: Mapping[str, str], cut_for: int | None) -> int:
    return cut_for or int(environment.get("WORLD_SIZE", 1))


def _default_compared(environment: Mapping[str, str], cut_for: int | None) -> int:
    asked = int(environment.get("WORLD_SIZE", 1))
    if cut_for and asked != cut_for:
        _refuse(asked, cut_for)
    return asked


def _text_compared(environment: Mapping[str, str], cut_for: int | None) -> int:
    asked: Any = environment.get("WORLD_SIZE", cut_for or 1)
    if cut_for and asked != cut_for:
        _refuse(asked, cut_for)
    return int(asked)


def _whole_folder_refused(environment: Mapping[str, str], cut_for: int | None) -> int:
    asked = int(environment.get("WORLD_SIZE", cut_for or 1))
    if asked != (cut_for or 1):
        _refuse(asked, cut_for)
    return asked


def _too_many_only(environment: Mapping[str, str], cut_for: int | None) -> int:
    asked = _variable_first(environment, cut_for)
    if cut_for and asked > cut_for:
        _refuse(asked, cut_for)
    return asked


def _no_divisor(environment: Mapping[str, str], cut_for: int | None) -> int:
    asked = _variable_first(environment, cut_for)
    if cut_for and cut_for % asked:
        _refuse(asked, cut_for)
    return asked


def _smaller(environment: Mapping[str, str], cut_for: int | None) -> int:
    asked = _variable_first(environment, cut_for)
    return min(asked, cut_for or asked)


def _mute(environment: Mapping[str, str], cut_for: int | None) -> int:
    asked = _variable_first(environment, cut_for)
    if cut_for and asked != cut_for:
        raise ValueError("wrong number of ranks")
    return asked


_WRONG: dict[str, tuple[Ranks, str]] = {
    "variable alone": (
        _variable_alone,
        "This is the old sample's way: you never look at cut_for. A folder cut for 2 and the variable "
        "unset gives one rank with half of every weight. Use cut_for where the variable is missing, and "
        "compare the two where it is not.",
    ),
    "variable first": (
        _variable_first,
        "With WORLD_SIZE=4 and a folder cut for 2 you start four ranks for two parts. Two numbers that "
        "disagree mean that one of them is a mistake, and you cannot know which: raise ValueError.",
    ),
    "folder first": (
        _folder_first,
        "You let cut_for win in silence. But torchrun sets WORLD_SIZE to the processes it started: with "
        "4 of them and a job of 2, two have no part. Where both are given and differ, raise ValueError.",
    ),
    "default compared": (
        _default_compared,
        "You compare cut_for with a default that nobody asked for: an unset variable contradicts "
        "nothing. Take cut_for as the default.",
    ),
    "text compared": (
        _text_compared,
        'You refuse 2 against 2: values of an environment are text, and "2" != 2. Make it an int '
        "before you compare.",
    ),
    "whole folder refused": (
        _whole_folder_refused,
        "cut_for None is the published checkpoint, not cut for anybody: it is cut while loading, "
        "for as many ranks as asked. Compare only where cut_for is a number.",
    ),
    "too many only": (
        _too_many_only,
        "You refuse more ranks than parts, but not fewer: one rank of a folder cut for 2 has half of "
        "every weight, and nobody adds the other half.",
    ),
    "divisors pass": (
        _no_divisor,
        "You let pass what divides: 3 ranks of a folder cut for 6. But a rank reads one folder, its own, "
        "so three of the six parts are never read. Only equal numbers fit.",
    ),
    "smaller of both": (
        _smaller,
        "The smaller of two numbers that disagree is still a guess: 1 rank of 2 has half of every "
        "weight. Raise ValueError.",
    ),
    "mute error": (
        _mute,
        "You refuse the right runs, but the error does not say why: put both numbers into its text, so that "
        "the reader knows what to set or to split again.",
    ),
}


def _outcome(ranks: Ranks, environment: Mapping[str, str], cut_for: int | None) -> tuple[Any, str]:
    try:
        return ranks(dict(environment), cut_for), ""
    except Exception as error:  # a learner may refuse with any class, and may also fail
        return REFUSED, f"{type(error).__name__}: {error}"


def _check(answer: Any) -> str | None:
    got = [_outcome(answer, *case) for case in CASES]

    def like(form: Ranks) -> bool:
        return [g for g, _ in got] == [_outcome(form, *case)[0] for case in CASES]

    if like(_right):
        said = [(case, text) for case, (g, text) in zip(CASES, got, strict=True) if g == REFUSED]
        told = all(
            str(cut_for) in text and env["WORLD_SIZE"] in text for (env, cut_for), text in said
        )
        return None if told else "mute error"
    for name, (form, _) in _WRONG.items():
        if like(form):
            return name
    for (env, cut_for), (g, text) in zip(CASES, got, strict=True):
        want = _outcome(_right, env, cut_for)[0]
        if g != want:
            due = "raise ValueError" if want == REFUSED else f"return {want}"
            yours = f"raises {text}" if g == REFUSED else f"returns {g!r}"
            return f"rank_count({env}, {cut_for}) should {due}; yours {yours}."
    return None


EXERCISES = (
    Exercise(
        id="09.rank_counts",
        notebook="09_many_cards",
        title="One number of ranks",
        minutes=6,
        difficulty=1,
        check=_check,
        function="rank_count(environment, cut_for) that returns a number of ranks or raises ValueError.",
        wrong=dict(_WRONG),
        solution="""
def rank_count(environment, cut_for):
    asked = int(environment.get("WORLD_SIZE", cut_for or 1))  # text; unset contradicts nothing
    if cut_for and asked != cut_for:                          # None: not cut yet, any number fits
        raise ValueError(f"weights cut for {cut_for} ranks, WORLD_SIZE is {asked}: set it to {cut_for} or split again")
    return asked

answer = rank_count
""",
    ),
)
