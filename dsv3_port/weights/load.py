"""Strict fill of a model: every parameter once, every published tensor once or named as left out,
or an error."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import PortError
from ..model.decoder import DeepseekV3
from .checkpoint import Checkpoint
from .fp8 import FP8, kept_plain, stored_as_fp8
from .layout import Piece, Target, left_out, targets


def by_source(wanted: list[Target]) -> dict[str, list[tuple[Target, Piece]]]:
    """Published name -> what it fills, so that every tensor is read once."""
    table: dict[str, list[tuple[Target, Piece]]] = defaultdict(list)
    for target in wanted:
        for piece in target.pieces:
            table[piece.source].append((target, piece))
    return table


def check_sources(
    checkpoint: Checkpoint, table: dict[str, list[tuple[Target, Piece]]]
) -> list[str]:
    """Names and shapes of the checkpoint against the table; returns the tensors deliberately left
    out."""
    names = set(checkpoint.names)
    missing = sorted(set(table) - names)
    if missing:
        raise PortError(
            f"{checkpoint.path}: {len(missing)} tensors that the config calls for are missing, first "
            f"{missing[0]}"
        )
    config = checkpoint.config.replace(num_nextn_predict_layers=_mtp_layers(checkpoint))
    unused = sorted(n for n in names - set(table) if left_out(config, n) is None)
    if unused:
        raise PortError(
            f"{checkpoint.path}: {len(unused)} tensors have no place in the model, first {unused[0]}; is "
            "config.json the one that belongs to these weights?"
        )
    for source, uses in table.items():
        want = uses[0][1].source_shape
        if tuple(checkpoint.shape(source)) != want:
            raise PortError(
                f"{checkpoint.path}: {source} is {list(checkpoint.shape(source))}, config.json asks for "
                f"{list(want)}"
            )
        _check_dtype(checkpoint, source)
    return sorted(n for n in names - set(table))


def _mtp_layers(checkpoint: Checkpoint) -> int:
    """How many multi-token prediction layers the weights have. A config that was saved again often
    does not speak of them; what they are is told by their projection."""
    last = checkpoint.config.num_hidden_layers
    count = checkpoint.config.num_nextn_predict_layers
    while f"model.layers.{last + count}.eh_proj.weight" in checkpoint:
        count += 1
    return count


def _check_dtype(checkpoint: Checkpoint, name: str) -> None:
    """FP8 where config.json promises FP8 blocks, and only there."""
    config, stored = checkpoint.config, checkpoint.stored_dtype(name)
    promised = config.fp8 and stored_as_fp8(name) and not kept_plain(config, name)
    if (stored == FP8) != promised:
        said = "promises FP8 blocks there" if promised else "says nothing of FP8 blocks there"
        raise PortError(
            f"{checkpoint.path}: {name} is stored as {str(stored).removeprefix('torch.')}, and config.json "
            f"{said} (quantization_config); take the config.json that belongs to these weights"
        )


def load_weights(model: DeepseekV3, checkpoint: Checkpoint, progress: bool = False) -> list[str]:
    """Fill `model` from a published-format checkpoint, tensor by tensor; returns the names left out
    (MTP).

    Raises PortError for a missing, unused or misshapen tensor before anything is read.
    """
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    wanted = list(targets(model.config, model.plan, model.parallel))
    names = [t.name for t in wanted]
    if sorted(names) != sorted(parameters):
        odd = sorted(set(names) ^ set(parameters))
        raise AssertionError(f"layout and model disagree about {odd[:3]}")
    for target in wanted:
        if tuple(parameters[target.name].shape) != target.shape:
            raise AssertionError(
                f"layout says {target.name} is {target.shape}, the model "
                f"{tuple(parameters[target.name].shape)}"
            )
    table = by_source(wanted)
    skipped = check_sources(checkpoint, table)
    bar = tqdm(
        table.items(),
        desc="weights",
        unit="tensor",
        disable=None if progress else True,
        leave=False,
    )
    with torch.no_grad():
        for source, uses in bar:
            dtype = torch.float32 if any(t.keep_float32 for t, _ in uses) else model.dtype
            value = checkpoint.read(source, dtype)
            for target, piece in uses:
                piece.place(value, parameters[target.name])
    return skipped
