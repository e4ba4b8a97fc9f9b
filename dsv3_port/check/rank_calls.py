"""What the notebooks run in several processes: functions of one rank for `run_ranks`.

They stand here and not in notebook cells because the new processes must be able to import them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..count.traffic import Collective, CountedParallel
from ..engine.device import use_card
from ..engine.generate import generate
from ..engine.loading import load_model
from ..engine.tokenizer import Prompt, load_tokenizer
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..parallel import TensorParallel
from ..plan import PortPlan
from .defects import GATHERS
from .equivalence import padding, random_ids
from .stages import feed


def own_device(parallel: TensorParallel, device: str) -> str:
    """This rank's card on this machine; its process uses no other."""
    return use_card(device, parallel.rank)


def stored_bytes(model: DeepseekV3) -> int:
    """Bytes of this rank's parameters."""
    return sum(p.nbytes for p in model.parameters())


# ---- functions of one rank -----------------------------------------------------------------------


def logits_of_rank(
    parallel: TensorParallel,
    path: str,
    plan: PortPlan,
    input_ids: Tensor,
    steps: int = 4,
    device: str = "cpu",
    gather: str = "right",
) -> Tensor:
    """Logits [B, 1 + steps, V] in float32: after the prompt input_ids[:, :-steps], rows of different
    lengths and padded, then after each cached step, in a cache with spare room.

    gather: a key of defects.GATHERS, to see what a wrong one does.
    """
    place = GATHERS[gather](parallel.rank, parallel.world_size, parallel.group)
    model = load_model(path, plan, own_device(parallel, device), "float32", place)
    calls = feed(model, input_ids, padding(input_ids, steps), steps)
    return torch.cat([call()[:, -1:] for call in calls], 1).cpu()


def gathers_of_rank(
    parallel: TensorParallel,
    path: str,
    plan: PortPlan,
    input_ids: Tensor,
    steps: int = 4,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """logits_of_rank with the right gather and with each wrong one of defects.GATHERS."""
    return {
        name: logits_of_rank(parallel, path, plan, input_ids, steps, device, name)
        for name in GATHERS
    }


def tokens_of_rank(
    parallel: TensorParallel,
    path: str,
    plan: PortPlan,
    prompts: list[Prompt],
    max_new_tokens: int = 32,
    chat: bool = False,
    device: str = "cpu",
) -> list[list[int]]:
    """Greedy token ids after each prompt; the tokenizer lies in `path` too."""
    model = load_model(path, plan, own_device(parallel, device), "float32", parallel)
    return [
        g.token_ids
        for g in generate(model, load_tokenizer(path), prompts, max_new_tokens, chat=chat)
    ]


@dataclass(frozen=True)
class RankReport:
    """What one rank held and sent."""

    rank: int
    world_size: int
    process: int
    device: str
    parameter_bytes: int
    cache_bytes: int
    prefill: list[Collective]
    decode: list[Collective]  # of one step


def measure_rank(
    parallel: TensorParallel,
    path: str,
    plan: PortPlan,
    batch: int = 1,
    prompt: int = 32,
    device: str = "cpu",
) -> RankReport:
    """Load this rank's weights, run one prefill of `prompt` tokens and one decode step, and say
    what it took."""
    counted = CountedParallel(parallel.rank, parallel.world_size, parallel.group)
    model = load_model(path, plan, own_device(parallel, device), "float32", counted)
    ids = random_ids(model, (batch, prompt + 1), 0)
    cache = model.new_cache(batch, prompt + 1)
    model(ids[:, :prompt], cache=cache)
    prefill = list(counted.log)
    model(ids[:, prompt:], cache=cache)
    return RankReport(
        parallel.rank,
        parallel.world_size,
        os.getpid(),
        str(model.device),
        stored_bytes(model),
        cache.nbytes,
        prefill,
        counted.log[len(prefill) :],
    )


def broken_rank(parallel: TensorParallel) -> None:
    """Rank 1 finds a bad file while the others already wait for it in a collective."""
    if parallel.rank == 1:
        raise PortError(
            "model-00001-of-00001.safetensors: not readable as safetensors; split again"
        )
    dist.barrier()
