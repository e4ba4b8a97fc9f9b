"""From a checkpoint folder to a model, and from prompts to text."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import hostnpu
from ..errors import PortError
from ..model.cache import Cache
from ..model.decoder import DeepseekV3, build
from ..ops.providers import use_gmm_provider
from ..parallel import SINGLE, TensorParallel
from ..plan import PortPlan
from ..weights.checkpoint import Checkpoint
from ..weights.load import load_weights
from .graph import compile_steps
from .nonfinite import first_nonfinite
from .settings import environment
from .tokenizer import Prompt, check_length, encode, pad_left

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """`auto`: npu where torch_npu sees one, else cuda, else cpu. A device that is not there is an
    error.

    `host-npu` enables the package's stand-in for CANN in this process and is device npu from then
    on.
    """
    if isinstance(name, torch.device):
        return name
    if name == "host-npu":
        hostnpu.enable()
        return torch.device("npu")
    has_npu = hasattr(torch, "npu") and torch.npu.is_available()
    if (
        str(name).split(":")[0] == "npu" and not has_npu
    ):  # torch itself does not even know the word without torch_npu
        raise PortError(
            "device 'npu': torch_npu is not loaded or sees no NPU; `dsv3-port doctor` says why. Device "
            "'host-npu' is the real torch_npu on a stand-in for CANN, for machines without an NPU"
        )
    if name == "auto":
        return torch.device("npu" if has_npu else "cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PortError(f"unknown device {name!r}; use auto, cpu, cuda, npu or host-npu") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PortError("device 'cuda': this torch sees no GPU; use --device cpu")
    if device.type not in ("cpu", "cuda", "npu"):
        raise PortError(f"device {name!r} is not supported; use auto, cpu, cuda, npu or host-npu")
    return device


def pick_dtype(name: str | torch.dtype | None, default: torch.dtype = torch.float32) -> torch.dtype:
    if name is None:
        return default
    if isinstance(name, torch.dtype):
        if name in DTYPES.values():
            return name
    elif name in DTYPES:
        return DTYPES[name]
    raise PortError(f"dtype {name!r} is not supported; use {', '.join(DTYPES)}")


def load_model(
    path: str | Path,
    plan: PortPlan | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    parallel: TensorParallel = SINGLE,
    progress: bool = False,
) -> DeepseekV3:
    """Read a checkpoint folder into the model of `plan` (default: the full port); dtype defaults to
    float32 on cpu and bfloat16 elsewhere. A published checkpoint is cut on the way for `parallel`;
    a folder that `dsv3-port shard` wrote must have been written for the same world size and forms.
    plan.graph other than eager compiles the step.
    """
    from ..weights.sharding import is_sharded, load_shard

    plan = plan or PortPlan.full()
    where = pick_device(device)
    if where.type == "npu":
        use_gmm_provider(environment("GMM_PROVIDER") or "auto")
    chosen = pick_dtype(dtype, torch.float32 if where.type == "cpu" else torch.bfloat16)
    if is_sharded(path):
        model = load_shard(path, plan, parallel, where, chosen)
    else:
        checkpoint = Checkpoint.open(path)
        model = build(checkpoint.config, plan, parallel, where, chosen)
        load_weights(model, checkpoint, progress)
    return compile_steps(model, plan.graph)


@dataclass(frozen=True)
class Generation:
    """One prompt's continuation."""

    prompt: Prompt
    text: str
    token_ids: list[int]
    prompt_tokens: int
    # from the start of its batch to its first token: the prompts before it are prefilled first
    seconds_first: float
    seconds_per_token: float  # median decode step of its batch; 0 where no step was made


def generate(
    model: DeepseekV3,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 32,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    first_number: int = 0,
    chat: bool = False,
    pad_to: int | None = None,
    limit: int | None = None,
    caches: Caches | None = None,
    on_token: Callable[[int, str], None] | None = None,
) -> list[Generation]:
    """Continue every prompt (text, or chat messages): each is prefilled alone, then all are decoded
    together.

    temperature 0 is greedy; otherwise prompt i is drawn with the seed `seed + first_number + i`, so
    that its text does not depend on the batch it runs in. A sequence stops at an EOS token, the
    batch when all have. pad_to fixes the prompt length for graphs, limit (INPUT_MAX_LEN) refuses
    longer prompts. caches that fit are used again, so that graphs find them where they were.
    on_token(row, new text) is called as text appears.
    """
    if max_new_tokens < 1:
        raise PortError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    if not prompts:
        return []
    rows = encode(tokenizer, prompts, chat)
    _check_rows(model, rows, max_new_tokens, limit)
    stop = set(model.config.eos_token_ids) | ({tokenizer.eos_token_id} - {None})
    pad_id = next(i for i in (tokenizer.pad_token_id, *sorted(stop), 0) if i is not None)
    ids, mask = pad_left(rows, pad_id, pad_to, model.device)
    pick = _Picker(
        temperature,
        [seed + first_number + i for i in range(len(rows))],
        lambda row: first_nonfinite(model, rows[row] + stream.out[row]),
    )
    caches = caches or Caches.make(model, len(rows), ids.shape[1], max_new_tokens)
    stream = _Stream(tokenizer, len(rows), stop, on_token)

    start = time.perf_counter()
    token, firsts = _prefill(model, ids, mask, caches, pick, stream, start)
    steps: list[float] = []
    while len(steps) + 1 < max_new_tokens and not stream.done:
        start = time.perf_counter()
        token = pick(model(token.unsqueeze(1), cache=caches.batch)[:, -1])
        stream.add(token.tolist())
        steps.append(time.perf_counter() - start)
    pace = statistics.median(steps) if steps else 0.0
    return [
        Generation(
            prompt, tokenizer.decode(out, skip_special_tokens=True), out, len(row), first, pace
        )
        for prompt, row, out, first in zip(prompts, rows, stream.out, firsts, strict=True)
    ]


def _check_rows(
    model: DeepseekV3, rows: list[list[int]], max_new_tokens: int, limit: int | None
) -> None:
    highest, longest = max(map(max, rows)), max(map(len, rows))
    if highest >= model.config.vocab_size:
        raise PortError(
            f"the tokenizer gives id {highest}, the model's vocabulary has {model.config.vocab_size}: "
            "is tokenizer.json the one that belongs to these weights?"
        )
    check_length(longest, limit)
    positions = model.config.max_position_embeddings
    if longest + max_new_tokens > positions:
        raise PortError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones are more than the model's "
            f"{positions} positions: shorten it, or set MAX_NEW_TOKENS lower"
        )


@dataclass(frozen=True)
class Caches:
    """One prompt is prefilled in `one`, of [1, S]; all rows are decoded in `batch`, of [B, S + new
    tokens]."""

    one: Cache
    batch: Cache

    @classmethod
    def make(cls, model: DeepseekV3, batch: int, width: int, max_new_tokens: int) -> Caches:
        return cls(model.new_cache(1, width), model.new_cache(batch, width + max_new_tokens))


def warm_up(model: DeepseekV3, caches: Caches) -> float:
    """One prefill and two decode steps of these shapes, which compiles them where the model is a
    graph; seconds."""
    start = time.perf_counter()
    ids = torch.zeros(1, caches.one.max_length, dtype=torch.int64, device=model.device)
    caches.batch.reset()
    for row in range(caches.batch.batch):
        caches.one.reset()
        model(ids, torch.ones_like(ids), caches.one)
        _adopt(caches.batch, caches.one, row)
    for _ in range(min(2, caches.batch.max_length - caches.batch.length)):
        model(ids[:, :1].expand(caches.batch.batch, 1).contiguous(), cache=caches.batch).argmax(
            -1
        ).tolist()
    return time.perf_counter() - start


def _prefill(
    model: DeepseekV3,
    ids: Tensor,
    mask: Tensor,
    caches: Caches,
    pick: _Picker,
    stream: _Stream,
    start: float,
) -> tuple[Tensor, list[float]]:
    """Row by row through a cache of one sequence, so that the step has the same shape [1, S]
    whatever the batch is.

    Returns the first tokens [B] and the seconds at which each was there.
    """
    caches.batch.reset()
    tokens, seconds = [], []
    for row in range(len(ids)):
        caches.one.reset()
        token = pick(model(ids[row : row + 1], mask[row : row + 1], caches.one)[:, -1], row)
        stream.add(token.tolist(), row)
        seconds.append(time.perf_counter() - start)
        tokens.append(token)
        _adopt(caches.batch, caches.one, row)
    return torch.cat(tokens), seconds


def _adopt(cache: Cache, one: Cache, row: int) -> None:
    """Copy a prefilled sequence into its row of the batch's cache."""
    if cache.length == 0:  # the growing form has no room before it is given something to hold
        for layer, buffers in enumerate(one.buffers):
            cache.update(layer, *(b.new_zeros(cache.batch, *b.shape[1:]) for b in buffers))
        cache.slot.fill_(one.length)
        cache.advance(one.length)
    cache.pad[row] = one.pad[0]
    for mine, its in zip(cache.buffers, one.buffers, strict=True):
        for target, source in zip(mine, its, strict=True):
            target[row, :, : one.length].copy_(source[0])


class _Picker:
    """The next token of each row: the largest logit, or a draw from the row's own generator.

    Drawn on the host, so that the draw is the same on every device; and every rank has the same
    logits to draw from, because each part of them is computed by one rank and gathered.
    """

    def __init__(
        self, temperature: float, seeds: Sequence[int], explain: Callable[[int], str]
    ) -> None:
        if not 0 <= temperature < math.inf:  # a NaN compares false
            raise PortError(f"temperature must be 0 (greedy) or a number above, not {temperature}")
        for seed in seeds:
            if not -(2**63) <= seed < 2**64:
                raise PortError(f"seed must be within -2**63..2**64-1, {seed} is not")
        self.temperature, self.explain = temperature, explain
        self.generators = [torch.Generator().manual_seed(s) for s in seeds] if temperature else []

    def __call__(self, logits: Tensor, first_row: int = 0) -> Tensor:
        """logits [B, V] of the rows from `first_row` on -> token ids [B]. PortError where a row has
        a NaN, an infinite logit, or nothing else than -inf."""
        highest, token = logits.max(-1)
        if not bool(highest.isfinite().all()):
            raise PortError(self.explain(first_row + int(highest.isfinite().int().argmin())))
        if not self.temperature:
            return token
        scaled = logits.cpu() / self.temperature
        if not bool(scaled.isfinite().all()):  # a temperature close to 0
            scaled = (logits - highest.unsqueeze(-1)).cpu() / self.temperature
        chances = scaled.softmax(-1)
        drawn = [
            torch.multinomial(row, 1, generator=self.generators[first_row + i])
            for i, row in enumerate(chances)
        ]
        return torch.cat(drawn).to(logits.device)


class _Stream:
    """Collects tokens of each row until its EOS and hands out text as it becomes whole characters."""

    def __init__(
        self, tokenizer: Any, rows: int, stop: set[int], on_token: Callable[[int, str], None] | None
    ) -> None:
        self.tokenizer, self.stop, self.on_token = tokenizer, stop, on_token
        self.out: list[list[int]] = [[] for _ in range(rows)]
        self.shown = [""] * rows
        self.ended = [False] * rows

    @property
    def done(self) -> bool:
        return all(self.ended)

    def add(self, tokens: list[int], first_row: int = 0) -> None:
        for row, token in enumerate(tokens, first_row):
            if self.ended[row]:
                continue
            self.out[row].append(token)
            self.ended[row] = token in self.stop
            if self.on_token is not None:
                text = self.tokenizer.decode(self.out[row], skip_special_tokens=True)
                if not text.endswith("\ufffd"):  # a character may take several tokens
                    self.on_token(row, text[len(self.shown[row]) :])
                    self.shown[row] = text
