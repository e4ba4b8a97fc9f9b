"""Exercise of 05_merged_mlp: names that match in part.

A defect of the old sample (Ascend/torchair, npu_tuned_model/llm/deepseek_v3): names were matched as
substrings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import Exercise

NAMES = tuple(
    f"model.layers.{n}.weight"
    for n in (
        "0.mlp.gate_proj",
        "0.mlp.up_proj",
        "0.mlp.down_proj",
        "1.mlp.gate",
        "1.mlp.experts.1.gate_proj",
        "1.mlp.experts.1.up_proj",
        "1.mlp.experts.11.gate_proj",
        "1.mlp.experts.11.up_proj",
        "1.mlp.shared_experts.gate_proj",
        "1.mlp.shared_experts.up_proj",
    )
) + (
    "model.layers.0.mlp.gate_proj.weight_scale_inv",
    "model.layers.0.mlp.up_proj.weight_scale_inv",
    "model.layers.1.mlp.gate.e_score_correction_bias",
)
Named = dict[str, list[str]]
MERGED = "merge_up_gate_proj"


def _sources(names: tuple[str, ...], taken: Callable[[str], bool]) -> Named:
    """New name -> sources; where `taken` says no, a name stands for itself."""
    made: Named = {}
    for name in names:
        parts = name.split(".")
        if parts[-2] in ("gate_proj", "up_proj") and taken(name):
            made.setdefault(".".join([*parts[:-2], MERGED, parts[-1]]), []).append(name)
        else:
            made[name] = [name]
    return {new: sorted(old) for new, old in made.items()}  # "gate_proj" sorts before "up_proj"


def _by_component(names: tuple[str, ...]) -> Named:
    return _sources(names, lambda name: True)


def _by_substring(names: tuple[str, ...]) -> Named:
    made: Named = {}
    for name in names:
        for part in ("gate_proj", "up_proj", "mlp.gate."):
            name_of = name.replace(part, f"mlp.{MERGED}." if part.endswith(".") else MERGED)
            if name_of != name:
                break
        made.setdefault(name_of, []).append(name)
    return made


def _up_first(names: tuple[str, ...]) -> Named:
    return {new: old[::-1] for new, old in _by_component(names).items()}


def _no_scales(names: tuple[str, ...]) -> Named:
    return _sources(names, lambda name: name.endswith(".weight"))


def _no_shared(names: tuple[str, ...]) -> Named:
    return _sources(names, lambda name: "shared_experts" not in name)


def _experts_only(names: tuple[str, ...]) -> Named:
    return _sources(names, lambda name: ".experts." in name)


def _up_left(names: tuple[str, ...]) -> Named:
    return {name.replace("gate_proj", MERGED): [name] for name in names}


def _one_for_all(names: tuple[str, ...]) -> Named:
    made = _by_component(tuple(n for n in names if ".experts." not in n))
    for leaf in ("1.mlp.experts.1",):  # experts.1 is found in experts.11 too
        made[f"model.layers.{leaf}.{MERGED}.weight"] = sorted(n for n in names if leaf in n)
    return made


_NAMED: dict[str, tuple[Callable[[tuple[str, ...]], Named], str]] = {
    "router": (
        _by_substring,
        '"gate" is part of mlp.gate, the router, as well: your rule merged the router\'s weight or bias away. '
        "Split the name at its dots and compare whole components.",
    ),
    "up first": (
        _up_first,
        "The order of the sources is the order in the merged matrix: gate first, because npu_swiglu takes "
        "SiLU of the first half.",
    ),
    "scales left": (
        _no_scales,
        "weight_scale_inv stayed behind: an FP8 matrix without its scales cannot be read, and the merged "
        "one needs both halves' scales. Merge whatever follows gate_proj and up_proj.",
    ),
    "shared left": (
        _no_shared,
        "The shared experts kept two matrices. They are an MLP like the others; every place that the "
        "ported model merges must be merged here.",
    ),
    "experts only": (
        _experts_only,
        "Only routed experts were merged. The dense layers and the shared expert run through the same "
        "MergedMLP and look for the same name.",
    ),
    "up left over": (
        _up_left,
        "You renamed gate_proj and left up_proj where it was: a rename is no merge. Each merged name has "
        "two sources.",
    ),
    "experts.1 in experts.11": (
        _one_for_all,
        "experts.1 is the beginning of experts.11: your rule gave one expert the matrices of "
        "two. Compare components, not beginnings.",
    ),
}


def _check_names(answer: Any) -> str | None:
    got = answer(NAMES)
    if not isinstance(got, dict) or not all(isinstance(v, (list, tuple)) for v in got.values()):
        return "sources must return a dict: each new name -> the list of published names that it is made of."
    found = {str(new): [str(n) for n in old] for new, old in got.items()}
    for name, form in (("", _by_component), *((n, f) for n, (f, _) in _NAMED.items())):
        if found == form(NAMES):
            return name or None
    used = [n for old in found.values() for n in old]
    lost = [n for n in NAMES if used.count(n) != 1]
    if any(".mlp.gate." in n for n in lost) or any(
        MERGED in new and any(".mlp.gate." in n for n in old) for new, old in found.items()
    ):
        return "router"
    if lost:
        return f"{lost[0]} is used {used.count(lost[0])} times; every published tensor must be used exactly once."
    wrong = next(
        new
        for new in [*_by_component(NAMES), *found]
        if found.get(new) != _by_component(NAMES).get(new)
    )
    return f"{wrong} should be made of {_by_component(NAMES).get(wrong, 'nothing: no parameter has this name')}."


EXERCISES = (
    Exercise(
        id="05.exact_names",
        notebook="05_merged_mlp",
        title="Names by whole components",
        minutes=8,
        difficulty=1,
        check=_check_names,
        function="sources(names) that returns {new name: [published names, in order]}.",
        wrong=dict(_NAMED),
        solution="""
def sources(names):
    made = {}
    for name in names:
        parts = name.split(".")
        if parts[-2] in ("gate_proj", "up_proj"):        # a whole component, never a part of one
            parts[-2] = "merge_up_gate_proj"
        made.setdefault(".".join(parts), []).append(name)
    return {new: sorted(old) for new, old in made.items()}   # gate_proj before up_proj

answer = sources
""",
    ),
)
