"""What one step of the model asks of a device, operator by operator: bytes, FLOPs, launches,
collectives.

The model itself runs, in its published sizes, on torch's meta device: shapes without values. So the
counts are those of the code of this plan and not of a formula. An operator that torch_npu has as
one counts as one (`npu_rms_norm`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
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
from ..errors import PortError
from ..model.cache import FixedCache
from ..model.decoder import DeepseekV3, build
from ..ops import cpu
from ..parallel import TensorParallel
from ..plan import PortPlan
from .census import is_launch, op_name
from .traffic import Collective, sent_bytes

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
OUTSIDE = "inputs"  # masks, positions, cos and sin


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


@dataclass(frozen=True)
class StepWork:
    """One forward call on one of `world_size` ranks."""

    config: DeepseekV3Config
    plan: PortPlan
    world_size: int
    phase: str  # prefill or decode
    batch: int
    tokens: int  # new ones of each sequence
    context: int  # positions that a query meets, its own among them
    work: list[Work]
    collectives: list[tuple[Collective, int]]  # a call, and how many of it
    syncs: int  # times that the host waits for a value

    @property
    def launches(self) -> int:
        """Kernels without collectives."""
        return sum(w.times for w in self.work)

    @property
    def nbytes(self) -> int:
        return sum(w.nbytes * w.times for w in self.work)

    @property
    def flops(self) -> int:
        return sum(w.flops * w.times for w in self.work)

    @property
    def sent(self) -> int:
        """Bytes that this rank sends by ring algorithms."""
        return sum(sent_bytes([call], self.world_size) * times for call, times in self.collectives)


def experts_met(config: DeepseekV3Config, tokens: int) -> int:
    """Experts that `tokens` tokens choose on average under even routing: E (1 - (1 - K/E)^T)."""
    experts, top = config.n_routed_experts, config.num_experts_per_tok
    return max(1, round(experts * (1 - (1 - top / experts) ** tokens)))


def step_work(
    config: DeepseekV3Config,
    plan: PortPlan,
    *,
    world_size: int = 1,
    batch: int = 1,
    tokens: int = 1,
    context: int = 4096,
    dtype: torch.dtype = torch.bfloat16,
) -> StepWork:
    """A prefill of `tokens` tokens of each sequence where tokens is context, else a step in a cache
    of `context`.

    PortError where the model cannot be cut over `world_size` ranks, or tokens do not fit into the
    context.
    """
    if not 1 <= tokens <= context or batch < 1:
        raise PortError(
            f"step_work: {tokens} tokens of each of {batch} sequences do not fit a context of {context}"
        )
    plan = plan.replace(graph="eager")
    plan = plan.plus("tensor_parallel") if world_size > 1 else plan
    short, times = _one_of_each(config)
    counter = _Counter(short, batch * tokens, times)
    model = build(short, plan, _CountedRank(0, world_size, counter=counter), "meta", dtype)
    cache = model.new_cache(batch, context)
    past = context - tokens
    if past and not isinstance(cache, FixedCache):
        cache.buffers = [
            [
                torch.empty(batch, heads, past, width, device="meta", dtype=dtype)
                for heads, width in cache.widths
            ]
            for _ in range(cache.layers)
        ]
    cache.length = past
    ids = torch.zeros(batch, tokens, dtype=torch.int64, device="meta")
    with _counting(model, counter):
        model(ids, cache=cache)
    return StepWork(
        config,
        plan,
        world_size,
        "decode" if past else "prefill",
        batch,
        tokens,
        context,
        counter.work,
        counter.collectives,
        counter.syncs,
    )


def _one_of_each(config: DeepseekV3Config) -> tuple[DeepseekV3Config, dict[int, int]]:
    """A model with each kind of layer once, and how many layers each stands for; -1 is what lies
    outside of layers.

    The very first layer is a kind of its own: nothing is added to the stream before its norm.
    """
    layers, dense = (
        config.num_hidden_layers,
        min(config.first_k_dense_replace, config.num_hidden_layers),
    )
    kinds = [config.is_moe(0)]  # of the layers of the short model: MoE or not
    times = [1]
    for moe, count in ((False, dense), (True, layers - dense)):
        rest = count - (1 if kinds[0] == moe else 0)
        if rest > 0:
            kinds.append(moe)
            times.append(rest)
    short = config.replace(num_hidden_layers=len(kinds), first_k_dense_replace=kinds.count(False))
    return short, {-1: 1, **dict(enumerate(times))}


class _Counter(TorchDispatchMode):
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

    def whole(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of `ops` as the one operator that torch_npu has."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.inside += 1
            try:
                result = function(*args, **kwargs)
            finally:
                self.inside -= 1
            if self.inside:
                return result
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
            else:
                self.add(name, _tensors(args, kwargs) + _tensors(result))
            return result

        return call

    def host_counts(self) -> list[int]:
        """What ExpertLoop reads on the host: every choice, spread evenly over the experts that are
        met."""
        self.syncs += self.times[self.layer]
        each, more = divmod(self.choices, self.met)
        return [each + (e < more) for e in range(self.met)] + [0] * (self.experts - self.met)


@dataclass(frozen=True)
class _CountedRank(TensorParallel):
    """One rank without the others: shapes are right, values are nobody's."""

    counter: _Counter | None = field(default=None, compare=False, repr=False)

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


def _tensors(*values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]


def _nbytes(tensors: list[Tensor]) -> int:
    """Bytes of distinct tensors; a dimension that only repeats (stride 0) is read once."""

    def held(t: Tensor) -> int:
        kept = [n for n, stride in zip(t.shape, t.stride(), strict=True) if stride or n == 0]
        return t.element_size() * torch.Size(kept).numel()

    return sum(held(t) for t in {id(t): t for t in tensors}.values())


@contextlib.contextmanager
def _counting(model: DeepseekV3, counter: _Counter) -> Iterator[None]:
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
        for name in [
            n
            for n, f in vars(ops).items()
            if n.startswith(("npu_", "scatter_update")) and callable(f)
        ]:
            stack.enter_context(
                mock.patch.object(ops, name, counter.whole(name, getattr(ops, name)))
            )
        stack.enter_context(mock.patch.object(ops, "attention", cpu.plain_attention))
        stack.enter_context(mock.patch.object(cpu, "_grouped_eager", torch.ops.dsv3.grouped_matmul))
        stack.enter_context(mock.patch.object(Tensor, "tolist", counter.host_counts))
        stack.enter_context(counter)
        yield
