"""What is asked of one rank: its device, its bytes, its text. `run_ranks` takes functions of a module and
not of a notebook cell, since the new processes must be able to import them."""

from __future__ import annotations

from ..engine.device import use_card
from ..engine.generate import generate
from ..engine.loading import load_model
from ..engine.tokenizer import Prompt, load_tokenizer
from ..model.decoder import DeepseekV3
from ..parallel import TensorParallel
from ..plan import PortPlan


def own_device(parallel: TensorParallel, device: str) -> str:
    """This rank's card on this machine; its process uses no other."""
    return use_card(device, parallel.rank)


def stored_bytes(model: DeepseekV3) -> int:
    """Bytes of this rank's parameters."""
    return sum(p.nbytes for p in model.parameters())


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
