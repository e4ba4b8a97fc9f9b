"""Operators of the converted GE graph per layer, recorded: how many a model with any number of
layers has.

data/recorded/ge_layers.json holds them for each rung that can be one graph, by difference of three
models that torchair converted on the host NPU (`python -m tests.hostnpu.inside.check_layers` writes
the file). Counts do not depend on widths, so those of small models hold for the published one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..errors import PortError
from ..hostnpu.ge_cost import MATMULS, kernels_of
from ..paths import recorded_file
from ..steps import step

RECORDED = "ge_layers.json"
# what GE's passes may take out: it folds constants, and fuses casts and transposes into their
# neighbours
FUSIBLE = frozenset(("Cast", "Transpose", "Identity", "Fill", "Range", "BroadcastTo"))
KINDS = ("rest", "dense", "moe")

Layers = dict[
    str, dict[str, int]
]  # kind of layer -> GE operator type -> how many in one such layer


@lru_cache(maxsize=1)
def recorded() -> dict[str, Any]:
    """The file: {"torch_npu": version, "rungs": {step id: {"prefill" or "decode": Layers}}}."""
    try:
        found: dict[str, Any] = json.loads(recorded_file(RECORDED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PortError(
            f"{RECORDED}: the recorded operator counts are not readable ({error}); run inside a "
            "checkout"
        ) from error
    return found


def operators(rung: str, phase: str, dense: int, moe: int) -> dict[str, int]:
    """GE operator type -> how many a graph of `dense` and `moe` layers has. rung: the step that was
    added last."""
    rungs = recorded()["rungs"]
    if step(rung).id not in rungs:
        raise PortError(
            f"step {rung!r} is not recorded as a GE graph; there are {', '.join(rungs)}"
        )
    return combine(rungs[step(rung).id][phase], dense, moe)


def combine(layers: Layers, dense: int, moe: int) -> dict[str, int]:
    """The rest of the model once, and each layer as often as it is there; most frequent first."""
    total: Counter[str] = Counter()
    for kind, times in zip(KINDS, (1, dense, moe), strict=True):
        for name, count in layers[kind].items():
            total[name] += count * times
    return {name: n for name, n in sorted(total.items(), key=lambda item: (-item[1], item[0])) if n}


def by_difference(models: Mapping[tuple[int, int], Mapping[str, int]]) -> Layers:
    """Counts of three models, keyed (dense, moe) layers: (1, 1), (2, 1) and (1, 2) -> counts by
    kind of layer."""
    one, more_dense, more_moe = (Counter(models[key]) for key in ((1, 1), (2, 1), (1, 2)))
    found = {"dense": _minus(more_dense, one), "moe": _minus(more_moe, one)}
    return {"rest": _minus(_minus(one, found["dense"]), found["moe"]), **found}


def _minus(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    """Negative counts stay: the first layer may lack an operator that later ones have."""
    left = {name: a.get(name, 0) - b.get(name, 0) for name in {**a, **b}}
    return {name: n for name, n in sorted(left.items(), key=lambda item: (-item[1], item[0])) if n}


def kernels(counts: Mapping[str, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(fewest, most) matrix products and (fewest, most) other kernels: without FUSIBLE ones, and
    with."""
    matmuls = sum(n for name, n in counts.items() if name in MATMULS)
    others = {name: n for name, n in kernels_of(counts).items() if name not in MATMULS}
    most = sum(others.values())
    return (matmuls, matmuls), (
        most - sum(n for name, n in others.items() if name in FUSIBLE),
        most,
    )
