"""What step_work runs a model in: a mode that writes down every operator, a rank without the others,
and what stands for values that the meta device has not."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .. import ops
from ..config import DeepseekV3Config
from ..messages import N_
from ..model.decoder import DeepseekV3
from ..ops import cpu, plain
from ..parallel import TensorParallel
from .operators import is_launch, op_name, whole_operators
from .traffic import Collective

# rows of the result are read and written, not the table that they come from
_ROWS = ("aten.embedding", "aten.index", "aten.gather")
_PARTS = {
    "self_attn": "attention",
    "gate": "gate",
    "experts": "experts",
    "shared_experts": "shared expert",
    "mlp": "MLP",
    "embed_tokens": "embedding",
    "lm_head": "head",
}
OUTSIDE = N_("inputs")  # masks, positions, cos and sin
# where an operator that writes rows into a paged cache has the caches among its arguments
_CACHES = {"npu_mla_prolog_v3": (9, 11), "npu_kv_rmsnorm_rope_cache_v2": (5, 7)}


@dataclass(frozen=True)
class Work:
    """One operator of one layer, which the step runs `times` times. `flops` are those of matrix
    products only."""

    # attention, gate, experts, shared expert, MLP (dense, or the sum of an MoE block), norm, ...
    part: str
    op: str
    nbytes: int  # read and written, each tensor once
    flops: int = 0
    float32: bool = False  # the product is in float32
    times: int = 1
    rows: int = 0  # of a product's left operand, in one matrix of a batch
    weights: int = 0  # bytes of a product's right operand: weights, or a cache
    experts: int = 0  # that a grouped product multiplies with


def experts_met(config: DeepseekV3Config, tokens: int) -> int:
    """Experts that `tokens` tokens choose on average under even routing: E (1 - (1 - K/E)^T)."""
    experts, top = config.n_routed_experts, config.num_experts_per_tok
    return max(1, round(experts * (1 - (1 - top / experts) ** tokens)))


class StepCounter(TorchDispatchMode):
    """Writes down what every operator reads, writes and computes, and where in the model."""

    def __init__(self, config: DeepseekV3Config, tokens: int, times: dict[int, int]) -> None:
        super().__init__()
        self.met, self.experts = experts_met(config, tokens), config.n_routed_experts
        self.choices, self.times = tokens * config.num_experts_per_tok, times
        self.layer, self.parts, self.inside = -1, [OUTSIDE], 0
        self.work: list[Work] = []
        self.collectives: list[tuple[Collective, int]] = []
        self.syncs = 0

    def add(
        self,
        op: str,
        tensors: list[Tensor],
        more: int = 0,
        flops: int = 0,
        float32: bool = False,
        **product: int,
    ) -> None:
        nbytes, times = _nbytes(tensors) + more, self.times[self.layer]
        self.work.append(Work(self.parts[-1], op, nbytes, flops, float32, times, **product))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        with self:
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        if is_launch(func):
            name, read, made = op_name(func), _tensors(args, kwargs), _tensors(result)
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **kwargs, out_val=result) if count else 0
            if name in _ROWS:
                self.add(name, read[1:] + made, sum(t.nbytes for t in made))
            elif flops:
                left, right = read[-2:]  # a bias comes first
                product = {"rows": left.shape[-2], "weights": _nbytes([right])}
                self.add(name, read + made, 0, flops, left.dtype == torch.float32, **product)
            else:
                self.add(name, read + made)
        return result

    def add_whole(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        """A function of `ops` as the one operator that torch_npu has."""
        name = function.__name__
        if name == "npu_grouped_matmul":  # weights of the experts that are met, and of no other
            (x,), (weight,) = args[0], args[1]
            met = weight.nbytes * self.met // self.experts
            self.add(
                name,
                [x, *result],
                met,
                2 * x.shape[0] * weight.shape[1] * weight.shape[2],
                x.dtype == torch.float32,
                rows=x.shape[0],
                weights=met,
                experts=self.met,
            )
        elif name == "scatter_update_":  # the new rows, not the buffer they go into
            self.add(name, [args[2]], args[2].nbytes)
        elif name == "npu_transpose_batchmatmul":
            inner = args[1].shape[-2]
            self.add(name, _tensors(args, kwargs, result), 0, 2 * result.numel() * inner)
        elif name in _CACHES:  # likewise
            first, last = _CACHES[name]
            rows = args[0].numel() // args[0].shape[-1]
            written = sum(rows * c.shape[-1] * c.element_size() for c in args[first:last])
            read = _tensors(args[:first], args[last:], kwargs)
            flops = _prolog_flops(rows, *args[1:5]) if name == "npu_mla_prolog_v3" else 0
            self.add(name, read + _tensors(result), written, flops)
        else:
            self.add(name, _tensors(args, kwargs) + _tensors(result))

    def host_counts(self) -> list[int]:
        """What ExpertLoop reads on the host: every choice, spread evenly over the experts that are
        met."""
        self.syncs += self.times[self.layer]
        each, more = divmod(self.choices, self.met)
        return [each + (e < more) for e in range(self.met)] + [0] * (self.experts - self.met)


@dataclass(frozen=True)
class CountedRank(TensorParallel):
    """One rank without the others: shapes are right, values are nobody's."""

    counter: StepCounter | None = field(default=None, compare=False, repr=False)

    def _count(self, kind: str, x: Tensor) -> None:
        assert self.counter is not None
        self.counter.collectives.append(
            (Collective(kind, x.nbytes), self.counter.times[self.counter.layer])
        )

    def all_reduce(self, x: Tensor) -> Tensor:
        if self.world_size > 1:
            self._count("all_reduce", x)
        return x

    def all_gather_last(self, x: Tensor) -> Tensor:
        if self.world_size == 1:
            return x
        self._count("all_gather", x)
        return x.new_empty((*x.shape[:-1], x.shape[-1] * self.world_size))


def _prolog_flops(rows: int, *weights: Tensor) -> int:
    """Of npu_mla_prolog_v3: every number of its four matrices meets every token."""
    return 2 * rows * sum(w.numel() for w in weights)


def _tensors(*values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def _nbytes(tensors: list[Tensor]) -> int:
    """Bytes of distinct tensors; a dimension that only repeats (stride 0) is read once."""

    def held(t: Tensor) -> int:
        kept = [n for n, stride in zip(t.shape, t.stride(), strict=True) if stride or n == 0]
        return t.element_size() * torch.Size(kept).numel()

    return sum(held(t) for t in {id(t): t for t in tensors}.values())


@contextlib.contextmanager
def counting(model: DeepseekV3, counter: StepCounter) -> Iterator[None]:
    """The counter knows where the model is; what would need values gets them from even routing."""

    def enter(part: str, layer: int, module: nn.Module, args: Any) -> None:
        counter.parts.append(part)
        counter.layer = layer

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        counter.parts.pop()
        if len(counter.parts) == 1:
            counter.layer = -1

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            words = name.split(".")
            layer = int(words[2]) if words[:2] == ["model", "layers"] and len(words) > 2 else -1
            part = (
                "norm"
                if "norm" in words[-1] and "self_attn" not in words
                else _PARTS.get(words[-1], "")
            )
            if part or len(words) == 3 and layer >= 0:
                hook = functools.partial(enter, part or "layer", layer)
                stack.callback(module.register_forward_pre_hook(hook).remove)
                stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(whole_operators(counter, counter.add_whole))
        stack.enter_context(mock.patch.object(ops, "attention", plain.plain_attention))
        stack.enter_context(mock.patch.object(cpu, "_grouped_eager", torch.ops.dsv3.grouped_matmul))
        stack.enter_context(mock.patch.object(Tensor, "tolist", counter.host_counts))
        stack.enter_context(counter)
        yield
