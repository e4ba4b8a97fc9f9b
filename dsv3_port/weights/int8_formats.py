"""The two formats of a W8A8 checkpoint, read and written.

compressed-tensors: config.json's `quantization_config` says that every Linear is int8 but those it
ignores; `.weight` int8 [N, K], `.weight_scale` float32 [N, 1]. Ascend's (msmodelslim):
`quant_model_description.json` has a type for every tensor, and an int8 weight has `.weight_offset`,
zeros, besides. Sources: vLLM's compressed-tensors; hicann/msmodelslim, save/ascendv1.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PortError
from ..files import read_json
from ..published import COMPRESSED_TENSORS as COMPRESSED
from .fp8 import stored_as_fp8
from .int8 import OFFSET, SCALE
from .pieces import Target

ASCEND = "ascend"
FORMATS = (COMPRESSED, ASCEND)
DESCRIPTION = "quant_model_description.json"
INT8, FLOAT = "W8A8_DYNAMIC", "FLOAT"
_OTHER_LINEARS = ("lm_head", "eh_proj", "head")

Entry = dict[str, Any]  # of a safetensors header


@dataclass(frozen=True)
class Scheme:
    """What a checkpoint says of its tensors' types. file: the one that says it."""

    format: str
    file: Path
    types: Mapping[str, str] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()  # ignored too, by the beginning of a module's name

    def kind(self, name: str) -> str:
        """W8A8_DYNAMIC or FLOAT; PortError where nothing or something else is said of a tensor."""
        if self.format == COMPRESSED:
            return INT8 if _is_linear(name) and not self.ignores(name) else FLOAT
        found = self.types.get(name)
        if found is None:
            raise PortError(
                f"{self.file}: does not cover {name}: each tensor of the weights needs its type there; take "
                "the description that belongs to these weights"
            )
        if found not in (INT8, FLOAT):
            why = ", whose activations have fixed scales" if found == "W8A8" else ""
            raise PortError(f"{self.file}: {name} is {found!r}{why}; {FLOAT} and {INT8} are read")
        return found

    def ignores(self, name: str) -> bool:
        module = name.removesuffix(".weight")
        return module in self.ignore or any(p.match(module) for p in self.patterns)

    def check(self, name: str, file: Path, entry_of: Callable[[str], Entry | None]) -> None:
        """Of a value in `file`: its type is the one that is promised, and its scales fit."""
        entry, kind = entry_of(name), self.kind(name)
        assert entry is not None
        if (entry["dtype"] == "I8") != (kind == INT8):
            raise PortError(
                f"{file}: {name} is stored as {entry['dtype']}, and {self.file.name} says {kind}; take the "
                f"{self.file.name} that belongs to these weights"
            )
        if kind == FLOAT:
            return
        if len(entry["shape"]) != 2:
            raise PortError(f"{file}: {name} is int8 and {entry['shape']}; a matrix [N, K] is read")
        for end in (SCALE, OFFSET):
            other = entry_of(name + end)
            if other is None and end == OFFSET and self.format == COMPRESSED:
                continue
            if other is None:
                raise PortError(
                    f"{file}: {name} is int8 and its {name + end} is missing; without it the values are "
                    "unknown"
                )
            want = [entry["shape"][0], 1]
            if other["dtype"] != "F32" or other["shape"] != want:
                raise PortError(
                    f"{file}: {name + end} is {other['dtype']} {other['shape']}; a channel of "
                    f"{entry['shape']} has one, F32 {want}"
                )
            if self.format == ASCEND and self.kind(name + end) != INT8:
                raise PortError(
                    f"{self.file}: {name} is {INT8} and {name + end} {self.kind(name + end)}; all "
                    "tensors of a layer have one type"
                )


def _is_linear(name: str) -> bool:
    module = name.split(".")[-2:-1]
    return stored_as_fp8(name) or name.endswith(".weight") and module[0] in _OTHER_LINEARS


def scheme_of(folder: Path) -> Scheme | None:
    """What a checkpoint folder says; None where it is not of either format."""
    file, described = folder / "config.json", folder / DESCRIPTION
    found = read_json(file).get("quantization_config") or {}
    if found.get("quant_method") == COMPRESSED:
        if described.is_file():
            raise PortError(
                f"{described}: is there, and config.json has a quantization_config of {COMPRESSED}: which "
                "of the two formats is it? Remove what belongs to another checkpoint"
            )
        words = found.get("ignore") or ()
        patterns = tuple(_pattern(file, w) for w in words if w.startswith("re:"))
        return Scheme(COMPRESSED, file, ignore=frozenset(words), patterns=patterns)
    if not described.is_file():
        return None
    return Scheme(ASCEND, described, types=read_description(described))


def _pattern(file: Path, word: str) -> re.Pattern[str]:
    try:
        return re.compile(word.removeprefix("re:"))
    except re.error as error:
        raise PortError(f"{file}: ignore has {word!r}, no pattern: {error}") from error


def read_description(file: Path) -> dict[str, str]:
    """Tensor -> type, with the few words about the whole (`version`, …) that stand beside them."""
    found = read_json(file)
    if not isinstance(found, dict):
        raise PortError(f"{file}: must map tensor names to types")
    return {name: kind for name, kind in found.items() if isinstance(kind, str)}


def beside(config: Entry, wanted: Iterable[Target], form: str) -> dict[str, Entry]:
    """File name -> what the format has beside weights of these targets. config: of the source."""
    values = {k: v for k, v in config.items() if k != "quantization_config"}
    targets = list(wanted)
    if form == COMPRESSED:
        values["quantization_config"] = _quantization_config(_ignored(targets))
        return {"config.json": values}
    types: Entry = {t.name: INT8 if t.pieces[0].part else FLOAT for t in targets}
    about = {"model_quant_type": INT8, "version": "1.0.0", "group_size": 0}
    return {
        "config.json": values,
        DESCRIPTION: types | about | {"metadata": {}, "optional": {}},
    }


def _ignored(targets: Iterable[Target]) -> list[str]:
    """Modules with a matrix that keeps its dtype. An embedding is no Linear."""
    return [
        t.name.removesuffix(".weight")
        for t in targets
        if not t.pieces[0].part and len(t.shape) > 1 and "embed_tokens" not in t.name
    ]


def _quantization_config(ignore: list[str]) -> Entry:
    eight: Entry = {"num_bits": 8, "type": "int", "symmetric": True}
    weights = eight | {"strategy": "channel", "dynamic": False, "observer": "minmax"}
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": eight | {"strategy": "token", "dynamic": True},
        "output_activations": None,
    }
    return {
        "quant_method": COMPRESSED,
        "format": "int-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ignore,
        "config_groups": {"group_0": group},
    }


def check_described(folder: Path, wanted: Iterable[Target], form: str) -> None:
    """PortError where the format's own words in a rank's folder do not cover what lies beside them."""
    scheme, targets = scheme_of(folder), list(wanted)
    if scheme is None or scheme.format != form:
        missing = DESCRIPTION if form == ASCEND else "quantization_config in config.json"
        raise PortError(f"{folder}: was written as {form}, and has no {missing}; split again")
    floats = set(_ignored(targets))
    for target in targets:
        want = INT8 if target.pieces[0].part else FLOAT
        if form == ASCEND:
            found = scheme.kind(target.name)
        elif target.int8 or target.name.removesuffix(".weight") in floats:
            found = FLOAT if scheme.ignores(target.name) else INT8
        else:
            continue
        if found != want:
            raise PortError(
                f"{scheme.file}: says that {target.name} is {found}, and it is {want}; split again"
            )
