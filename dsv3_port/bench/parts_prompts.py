"""Part prompts of `ci/bench/speed.py`: time and memory of prefill over the prompt's length.

Upstream's formula writes the [N, S, S] scores into memory; the port's prefill does not, and by chunks
no tensor grows with the prompt but the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..check.equivalence import check_equivalence
from ..count.memory import peak_memory
from ..engine.device import pick_device, pick_dtype
from ..engine.loading import load_model, with_plan
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..plan import PortPlan
from ..steps import TOLERANCE
from .cases import FULL, Case, case_of
from .models import checkpoint_of, free_bytes
from .prompt_table import CHUNKED, PEAK, SCORES
from .records import Results
from .workload import Ours, Workload

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
COPIES = 3  # of the scores that the plain formula holds at one time: products, masked, softmax


class Chunked(Ours):
    """The prompt `chunk` positions at a time."""

    def __init__(self, model: DeepseekV3, batch: int, capacity: int, chunk: int) -> None:
        super().__init__(model, batch, capacity)
        self.chunk = chunk

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.prefill(ids, None, self.cache, self.chunk)


def prompts_case(
    profile: Any,
    name: str,
    *,
    device: str,
    dtype: str,
    lengths: Sequence[int] = LENGTHS,
    chunk: int = 1024,
    rounds: int,
    seed: int = 0,
) -> Case:
    """The full port's eager prefill of one prompt at each length: with the scores in memory where
    they fit, whole, and by chunks. Logits of the last position are compared at each length first.

    facts: of each variant `peak_bytes_<length>`, held at most at one time beside weights and cache.
    """
    if chunk < 1 or not lengths or min(lengths) < 2:
        raise PortError(f"part prompts: chunk {chunk} and lengths {list(lengths)} must be positive")
    where = pick_device(device)
    model = load_model(checkpoint_of(profile)[1], PortPlan.full(), where, pick_dtype(dtype))
    plain = with_plan(model, PortPlan.full().replace(prefill_attention="plain"))
    check_equivalence({SCORES: plain, FULL: model}, seed=seed)
    results, left_out = Results(), {}
    for length in lengths:
        models: dict[str, Any] = {FULL: model, CHUNKED: Chunked(model, 1, length + 1, chunk)}
        if why := _does_not_fit(model, length):
            left_out[f"{SCORES}, {length} tokens"] = why
        else:
            models = {SCORES: plain} | models
        work = Workload(models, "prefill", batch=1, size=length, seed=seed)
        found = _differences(work, TOLERANCE[dtype])
        for variant, difference in found.items():
            results.differences[variant] = max(results.differences.get(variant, 0.0), difference)
        for variant, call in work.variants().items():
            work.prepare(variant, 0)
            facts = results.facts.setdefault(variant, {})
            facts[f"{PEAK}{length}"] = float(peak_memory(call, str(where)))
        results += work.measure(
            name, dict.fromkeys(models, "eager"), rounds=rounds, label=f"prompts {name} {length}"
        )
    key = f"{name}-{dtype}-prefill-over-prompts"
    return case_of(key, rounds, results, bound=TOLERANCE[dtype], left_out=left_out)


def _differences(work: Workload, bound: float) -> Mapping[str, float]:
    """Of each variant's logits from the first one's, over the largest; PortError above the bound."""
    found, reference = {}, None
    for name, call in work.variants().items():
        work.prepare(name, 0)
        logits = call()[:, -1].float()
        reference = logits if reference is None else reference
        found[name] = float((logits - reference).abs().max() / reference.abs().max())
        if not found[name] <= bound:
            raise PortError(
                f"{name}, {work.size} tokens: logits differ by {found[name]:.1e}, allowed are "
                f"{bound:.1e}: nothing was timed"
            )
    return found


def _does_not_fit(model: DeepseekV3, length: int) -> str:
    heads = model.config.num_attention_heads
    needed = COPIES * heads * length**2 * model.dtype.itemsize
    free = free_bytes(model.device)
    if needed < 0.7 * free:
        return ""
    return (
        f"{COPIES} tensors of {heads} heads x {length}^2 scores are {needed / 2**30:.1f} GiB, "
        f"{free / 2**30:.1f} GiB are free"
    )
