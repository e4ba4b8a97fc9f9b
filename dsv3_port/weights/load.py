"""Strict fill of a model: every parameter once, every published tensor once or named as left out,
or an error."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..model.weight_format import as_published
from ..parallel import TensorParallel
from .checkpoint import Checkpoint
from .fp8 import FP8, kept_plain, stored_as_fp8
from .int8 import parts_of
from .int8_formats import FLOAT, INT8
from .layout import Piece, Target, targets
from .left_out import left_out

# cut(weight, axis, unit, rank, world) -> this rank's part of a published matrix
Cut = Callable[[Tensor, int, int, int, int], Tensor]
# pack(gate [I, H], up [I, H], rank, world) -> this rank's merged rows [2I/W, H]
Pack = Callable[[Tensor, Tensor, int, int], Tensor]
MERGED = ("merge_up_gate_proj.weight", "group_w1_w3")


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
    config = checkpoint.config.replace(num_nextn_predict_layers=_mtp_layers(checkpoint))
    ahead = f"model.layers.{config.num_hidden_layers}."
    mtp = f"{ahead}eh_proj.weight" in table
    if mtp and f"{ahead}eh_proj.weight" in missing and all(m.startswith(ahead) for m in missing):
        raise PortError(
            f"{checkpoint.path}: has no multi-token prediction (MTP) layer ({ahead}eh_proj.weight is "
            "missing): take a checkpoint with it, or leave the step 'mtp' (NUM_SPECULATIVE_TOKENS) out"
        )
    if missing:
        raise PortError(
            f"{checkpoint.path}: {len(missing)} tensors that the config calls for are missing, first "
            f"{missing[0]}"
        )
    unused = sorted(n for n in names - set(table) if left_out(config, n, mtp) is None)
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
    _check_types(checkpoint, table)
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
    if name.endswith(".eh_proj.weight") and config.fp8:
        return  # published in BF16; with scales where somebody quantised it too (Checkpoint._check)
    promised = config.fp8 and stored_as_fp8(name) and not kept_plain(config, name)
    if (stored == FP8) != promised:
        said = "promises FP8 blocks there" if promised else "says nothing of FP8 blocks there"
        raise PortError(
            f"{checkpoint.path}: {name} is stored as {str(stored).removeprefix('torch.')}, and config.json "
            f"{said} (quantization_config); take the config.json that belongs to these weights"
        )


def _check_types(checkpoint: Checkpoint, table: dict[str, list[tuple[Target, Piece]]]) -> None:
    """Of a W8A8 checkpoint: what one layer of the model computes is of one type in it, and int8 where
    the layer is. An unquantised checkpoint is quantised on the way."""
    if checkpoint.scheme is None:
        return
    for target in {t.name: t for uses in table.values() for t, _ in uses if t.int8}.values():
        kinds = {p.source: checkpoint.kind(p.source) for p in target.pieces}
        floats = [name for name, kind in kinds.items() if kind == FLOAT]
        if not floats:
            continue
        others = [name for name in kinds if name not in floats]
        beside = f", and {others[0]} {INT8}: a fused layer has one type" if others else ""
        raise PortError(
            f"{checkpoint.scheme.file}: {floats[0]} is {FLOAT}{beside}; {target.name} of the plan is "
            "int8: take a checkpoint that has it in int8, or the published one"
        )


def load_weights(
    model: DeepseekV3,
    checkpoint: Checkpoint,
    progress: bool = False,
    cut: Cut | None = None,
    pack: Pack | None = None,
) -> list[str]:
    """Fill `model` from a published-format checkpoint, tensor by tensor; returns the names left out
    (MTP).

    `cut` stands in for the layout's own cut of every matrix that ranks share, `pack` for its cut
    and merge of gate and up. Raises PortError for a missing, unused or misshapen tensor before
    anything is read, and for a part of another shape.
    """
    parameters = as_published(model)
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
    if (cut or pack) and model.plan.quant != "none":
        raise PortError("`cut` and `pack` cut matrices of the model's dtype, not int8")
    merged = [t for t in wanted if pack is not None and t.name.endswith(MERGED)]
    packed = {p.source for t in merged for p in t.pieces}
    bar = tqdm(
        table.items(),
        desc="weights",
        unit="tensor",
        disable=None if progress else True,
        leave=False,
    )
    own = model.dtype  # of a module found by name: looked up once, not for every tensor
    with torch.no_grad():
        for source, uses in bar:
            if source in packed:
                continue
            if uses[0][0].int8:
                _place_int8(source, uses, parameters, checkpoint)
                continue
            dtype = torch.float32 if any(t.keep_float32 for t, _ in uses) else own
            value = checkpoint.read(source, dtype)
            for target, piece in uses:
                if cut is None or piece.length == piece.source_shape[piece.dim]:
                    piece.place(value, parameters[target.name])
                else:
                    _place_cut(piece, value, parameters[target.name], cut, model.parallel)
        for target in merged:
            assert pack is not None
            _place_packed(target, parameters[target.name], checkpoint, pack, model.parallel)
    return skipped


def _place_int8(
    source: str,
    uses: list[tuple[Target, Piece]],
    parameters: dict[str, Tensor],
    checkpoint: Checkpoint,
) -> None:
    parts = parts_of(*checkpoint.read_int8(source))
    for target, piece in uses:
        piece.place(parts[piece.part], parameters[target.name])


def _place_cut(
    piece: Piece, value: Tensor, target: Tensor, cut: Cut, parallel: TensorParallel
) -> None:
    part = cut(value, piece.dim, piece.unit, parallel.rank, parallel.world_size)
    want = [*piece.source_shape]
    want[piece.dim] = piece.length
    if list(part.shape) != want:
        raise PortError(
            f"cut gave {list(part.shape)} for {piece.source}, rank {parallel.rank} of "
            f"{parallel.world_size} holds {want}"
        )
    piece.block(target).copy_(piece.transform(part))


def _place_packed(
    target: Target, parameter: Tensor, checkpoint: Checkpoint, pack: Pack, parallel: TensorParallel
) -> None:
    """The pieces of a merged target come in pairs: gate, up of one MLP."""
    for gate, up in zip(target.pieces[::2], target.pieces[1::2], strict=True):
        whole = [checkpoint.read(p.source, parameter.dtype) for p in (gate, up)]
        rows = pack(whole[0], whole[1], parallel.rank, parallel.world_size)
        block = parameter[gate.at] if gate.at else parameter
        if rows.shape != block.shape:
            raise PortError(
                f"pack gave {list(rows.shape)} for {gate.source} and its up_proj, rank "
                f"{parallel.rank} of {parallel.world_size} holds {list(block.shape)}"
            )
        block.copy_(rows)
