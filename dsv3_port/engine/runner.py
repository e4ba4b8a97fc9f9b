"""From a checkpoint folder to a model, and from prompts to text."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PortError
from ..model.decoder import DeepseekV3, build
from ..parallel import SINGLE, TensorParallel
from ..steps import PortPlan
from ..weights.checkpoint import Checkpoint
from ..weights.load import load_weights
from .graph import compile_steps
from .tokenizer import Prompt, encode, pad_left

DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
          "float16": torch.float16, "fp16": torch.float16}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """`auto`: npu where torch_npu sees one, else cuda, else cpu. A device that is not there is an error."""
    if isinstance(name, torch.device):
        return name
    has_npu = hasattr(torch, "npu") and torch.npu.is_available()
    if str(name).split(":")[0] == "npu" and not has_npu:  # torch itself does not even know the word without torch_npu
        raise PortError("device 'npu': torch_npu is not loaded or sees no NPU; `dsv3-port doctor` says why")
    if name == "auto":
        return torch.device("npu" if has_npu else "cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PortError(f"unknown device {name!r}; use auto, cpu, cuda or npu") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PortError("device 'cuda': this torch sees no GPU; use --device cpu")
    if device.type not in ("cpu", "cuda", "npu"):
        raise PortError(f"device {name!r} is not supported; use auto, cpu, cuda or npu")
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


def load_model(path: str | Path, plan: PortPlan | None = None, device: str | torch.device = "auto",
               dtype: str | torch.dtype | None = None, parallel: TensorParallel = SINGLE,
               progress: bool = False) -> DeepseekV3:
    """Read a checkpoint folder into the model of `plan` (default: the full port); dtype defaults to float32 on cpu
    and bfloat16 elsewhere. A published checkpoint is cut on the way for `parallel`; a folder that `dsv3-port shard`
    wrote must have been written for the same world size and forms. plan.graph other than eager compiles the step.
    """
    from ..weights.shard import is_sharded, load_shard

    plan = plan or PortPlan.full()
    where = pick_device(device)
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
    """One prompt's continuation. Times are those of the whole batch it ran in."""

    prompt: Prompt
    text: str
    token_ids: list[int]
    prompt_tokens: int
    seconds_first: float  # prefill, to the first token
    seconds_per_token: float  # median decode step; 0 where no step was made


def generate(model: DeepseekV3, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int = 32, *,
             temperature: float = 0.0, seed: int = 0, chat: bool = False, pad_to: int | None = None,
             on_token: Callable[[int, str], None] | None = None) -> list[Generation]:
    """Continue every prompt (text, or chat messages), all in one left-padded batch.

    temperature 0 is greedy; otherwise tokens are drawn with `seed`. A sequence stops at an EOS token, the batch when
    all have. pad_to fixes the prompt length for graphs. on_token(row, new text) is called as text appears.
    """
    if max_new_tokens < 1:
        raise PortError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
    if not prompts:
        return []
    rows = encode(tokenizer, prompts, chat)
    stop = set(model.config.eos_token_ids) | ({tokenizer.eos_token_id} - {None})
    pad_id = next(i for i in (tokenizer.pad_token_id, *sorted(stop), 0) if i is not None)
    ids, mask = pad_left(rows, pad_id, pad_to, model.device)
    highest = int(ids.max())
    if highest >= model.config.vocab_size:
        raise PortError(f"the tokenizer gives id {highest}, the model's vocabulary has {model.config.vocab_size}: "
                        "is tokenizer.json the one that belongs to these weights?")
    pick = _picker(temperature, seed)
    cache = model.new_cache(len(rows), ids.shape[1] + max_new_tokens)
    stream = _Stream(tokenizer, len(rows), stop, on_token)

    start = time.perf_counter()
    token = pick(model(ids, mask, cache)[:, -1])
    stream.add(token.tolist())
    seconds_first = time.perf_counter() - start
    steps: list[float] = []
    while len(steps) + 1 < max_new_tokens and not stream.done:
        start = time.perf_counter()
        token = pick(model(token.unsqueeze(1), cache=cache)[:, -1])
        stream.add(token.tolist())
        steps.append(time.perf_counter() - start)
    pace = statistics.median(steps) if steps else 0.0
    return [Generation(prompt, tokenizer.decode(out, skip_special_tokens=True), out, len(row), seconds_first, pace)
            for prompt, row, out in zip(prompts, rows, stream.out, strict=True)]


def _picker(temperature: float, seed: int) -> Callable[[Tensor], Tensor]:
    if temperature < 0:
        raise PortError(f"temperature must be 0 (greedy) or more, not {temperature}")
    if temperature == 0:
        return lambda logits: logits.argmax(-1)
    generator = torch.Generator().manual_seed(seed)  # on the host: the same draw on every device and rank

    def draw(logits: Tensor) -> Tensor:
        chances = (logits.cpu() / temperature).softmax(-1)
        return torch.multinomial(chances, 1, generator=generator).squeeze(1).to(logits.device)

    return draw


class _Stream:
    """Collects tokens of each row until its EOS and hands out text as it becomes whole characters."""

    def __init__(self, tokenizer: Any, rows: int, stop: set[int], on_token: Callable[[int, str], None] | None) -> None:
        self.tokenizer, self.stop, self.on_token = tokenizer, stop, on_token
        self.out: list[list[int]] = [[] for _ in range(rows)]
        self.shown = [""] * rows
        self.ended = [False] * rows

    @property
    def done(self) -> bool:
        return all(self.ended)

    def add(self, tokens: list[int]) -> None:
        for row, token in enumerate(tokens):
            if self.ended[row]:
                continue
            self.out[row].append(token)
            self.ended[row] = token in self.stop
            if self.on_token is not None:
                text = self.tokenizer.decode(self.out[row], skip_special_tokens=True)
                if not text.endswith("\ufffd"):  # a character may take several tokens
                    self.on_token(row, text[len(self.shown[row]):])
                    self.shown[row] = text
