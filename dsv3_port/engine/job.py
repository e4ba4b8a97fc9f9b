"""The whole inference run over ranks: start them, load, generate batch by batch, collect the
report.

One process for one rank; otherwise this process starts all ranks of this machine, or is itself one
of them where torchrun or a script started it (RANK_ID or RANK is set), on one machine or several.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from .. import hostnpu
from ..config import DeepseekV3Config
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..model.paged_cache import Paging
from ..parallel import SINGLE, TensorParallel
from ..plan import PortPlan
from ..steps import step
from ..weights.kv_scales import read_kv_scales
from ..weights.layout import targets
from ..weights.sharding.manifest import check_fits, is_sharded, read_manifest
from . import decoding, speculative
from .agreement import inputs_agree, tokens_agree
from .caches import Caches
from .chat import check_messages
from .device import device_for, use_card
from .generate import Generation, generate
from .generation_config import GenerationConfig
from .graph import label
from .launch import run_ranks
from .loading import load_model
from .ranks import Address, joined
from .report import JobReport, rank_memory
from .sampler import Sampling
from .settings import Settings
from .tokenizer import Prompt, load_tokenizer


@dataclass(frozen=True)
class Job:
    """One run. on_text(text) is called on rank 0 as text appears; it must be picklable where ranks
    are started."""

    settings: Settings
    prompts: tuple[Prompt, ...]
    plan: PortPlan
    device: str = "auto"
    dtype: str | None = None
    temperature: float | None = None  # with top_k and top_p; None: as the folder says
    seed: int = 0
    pad: bool = False  # to INPUT_MAX_LEN in eager mode too
    on_text: Callable[[str], None] | None = None
    progress: bool = False
    top_k: int | None = None
    top_p: float | None = None
    generation_config: Literal["auto", "none"] = "auto"  # none: the folder's is not read

    @property
    def chat(self) -> bool:
        return self.settings.tokenizer_mode == "chat"

    @property
    def generation(self) -> GenerationConfig:
        if self.generation_config == "none":
            return GenerationConfig()
        return GenerationConfig.from_pretrained(self.settings.model_dir)

    @property
    def sampling(self) -> Sampling:
        """PortError where folder and arguments do not fit."""

        def flag(name: str) -> str:
            return "--" + name.replace("_", "-")

        return self.generation.sampling(self.temperature, self.top_k, self.top_p, flag)


def run_job(job: Job, work: Callable[..., Any] | None = None) -> Any:
    """Run it and return rank 0's report; None on another rank of a job that was started rank by
    rank. work(parallel, job, card): what each rank does, a function of a module; `run_rank` by itself.

    Raises PortError before any rank starts or any weight is read where folder, ranks and plan do
    not fit, and when a rank fails: with its number, machine and cause.
    """
    job, work = check_job(job), work or run_rank
    s = job.settings
    s.export()
    if s.world_size == 1:
        return work(SINGLE, job, s.local_rank)
    if s.is_rank:
        address = Address(s.master_addr, s.master_port, s.rank_id, s.world_size)
        use_card(job.device, s.local_rank)
        with joined(job.device, s.job_timeout, address) as parallel:
            return work(parallel, job, s.local_rank)
    return run_ranks(
        work,
        s.world_size,
        job,
        device=job.device,
        timeout_seconds=s.job_timeout,
        host=s.master_addr,
        port=s.master_port,
    )[0]


def check_job(job: Job) -> Job:
    """The job with its plan, device and world size settled; PortError where they do not fit the
    folder."""
    s = job.settings
    if not s.model_dir:
        raise PortError("no checkpoint: give --model-dir, or set MODEL_DIR")
    folder = Path(s.model_dir)
    if not folder.is_dir():
        raise PortError(f"{folder}: no such folder; --model-dir (MODEL_DIR) is a checkpoint folder")
    plan = _with_drafts(job.plan.replace(graph=s.graph), s)
    job.sampling  # noqa: B018  # raises
    if plan.cache != "paged" and s.origin.get("block_size", "").startswith("flag"):
        raise PortError(
            f"--block-size is of the paged cache, and this plan's cache is {plan.cache!r}: add --plan "
            f"production, or the step {step('paged_cache').id!r}"
        )
    if is_sharded(folder):
        manifest = read_manifest(folder)
        if "world_size" not in s.origin and s.world_size != manifest["world_size"]:
            origin = {**s.origin, "world_size": "the folder's manifest"}
            s = replace(s, world_size=manifest["world_size"], origin=origin)
        plan = plan.replace(quant=manifest["layout"].get("quant", plan.quant))  # it has no other
        check_fits(folder, manifest, s.world_size, plan, asked=s.origin.get("world_size", ""))
    elif s.world_size > 1:
        if not plan.tensor_parallel:
            raise PortError(
                f"world size {s.world_size} needs the step 'tensor_parallel' in the plan"
            )
        for _ in targets(
            DeepseekV3Config.from_pretrained(folder), plan, TensorParallel(0, s.world_size)
        ):
            pass  # raises where a size does not divide
    if plan.kv_cache_dtype == "int8":
        read_kv_scales(folder)  # raises
    if s.is_rank and s.world_size > 1 and not s.master_port:
        raise PortError(
            "MASTER_PORT is not set: ranks that are started one by one need the port on which they meet"
        )
    here = s.local_rank + 1 if s.is_rank else s.world_size
    prompts = tuple(p if isinstance(p, str) else check_messages(p) for p in job.prompts)
    device = device_for(job.device, here)
    return replace(job, settings=s, plan=plan, prompts=prompts, device=device)


def _with_drafts(plan: PortPlan, s: Settings) -> PortPlan:
    """The plan with its MTP layer where NUM_SPECULATIVE_TOKENS asks for it, without where it says 0.
    PortError where the plan's cache cannot take drafts back."""
    if "num_speculative_tokens" in s.origin:
        plan = plan.replace(mtp=bool(s.num_speculative_tokens))
    if plan.mtp and plan.cache == "growing":
        raise PortError(
            "NUM_SPECULATIVE_TOKENS needs a cache whose rows can be cut: a plan with the step "
            "'fixed_kv_cache' or 'paged_cache'"
        )
    return plan


def load_rank(
    parallel: TensorParallel, job: Job, card: int | None, **more: Any
) -> tuple[Any, DeepseekV3]:
    """Tokenizer and model of one rank, after all were found to have the same to do; `more` of it."""
    s = job.settings
    where = use_card(job.device, parallel.rank if card is None else card)
    tokenizer = load_tokenizer(s.model_dir)
    model = load_model(
        s.model_dir,
        job.plan,
        where,
        job.dtype,
        parallel,
        progress=job.progress and parallel.rank == 0,
        gmm=s.gmm_provider,
        generation=job.generation,
    )
    model.paging = Paging(s.block_size)
    # a rank that cannot load is known before rank 0 speaks
    parallel.all_reduce(torch.zeros(1, device=model.device))
    inputs_agree(parallel, _inputs(job) | more)
    return tokenizer, model


def run_rank(parallel: TensorParallel, job: Job, card: int | None = None) -> JobReport | None:
    """One rank's part: load, generate every batch, hand the report to rank 0 (None on the others)."""
    s = job.settings
    start = time.perf_counter()
    tokenizer, model = load_rank(parallel, job, card)
    loaded = time.perf_counter() - start
    size = min(s.batch_size, len(job.prompts))
    caches, warming = None, 0.0
    if (
        s.graph != "eager"
    ):  # shapes and places are fixed: compile and capture before anything is timed
        caches = Caches.make(model, size, s.input_max_len, s.max_new_tokens)
        began = time.perf_counter()
        (speculative if model.plan.mtp else decoding).warm_up(model, caches, s.prefill_chunk)
        warming = time.perf_counter() - began
    start = time.perf_counter()
    done: list[Generation] = []
    for at in range(0, len(job.prompts), size):
        done += _run_batch(model, tokenizer, job, at, caches)
    seconds = time.perf_counter() - start
    longest = s.input_max_len if _pads(job) else max(g.prompt_tokens for g in done)
    memory = rank_memory(model, size, longest + s.max_new_tokens)
    ranks = tokens_agree(parallel, memory, [g.token_ids for g in done])
    if parallel.rank:
        return None
    return JobReport(
        s.model_name,
        s.world_size,
        size,
        label(model),
        str(model.dtype).removeprefix("torch."),
        done,
        ranks,
        loaded,
        warming,
        seconds,
        not hostnpu.enabled(),
        job.sampling,
    )


def _pads(job: Job) -> bool:
    return job.pad or job.settings.graph != "eager"


def _run_batch(
    model: DeepseekV3, tokenizer: Any, job: Job, at: int, caches: Caches | None
) -> list[Generation]:
    """The batch that starts with prompt `at`. One prompt's text is handed out as it comes, that of
    several when they are done: a terminal has one cursor."""
    s = job.settings
    batch = list(job.prompts[at : at + s.batch_size])
    count = len(batch)
    if caches:
        batch += batch[-1:] * (
            caches.batch.batch - count
        )  # the last batch too has the shape that was compiled
    tell = job.on_text if model.parallel.rank == 0 else None
    streams = tell is not None and len(batch) == 1
    if tell and streams:
        tell(shown(batch[0]))
    found = generate(
        model,
        tokenizer,
        batch,
        s.max_new_tokens,
        **asdict(job.sampling),
        seed=job.seed,
        first_number=at,
        chat=job.chat,
        pad_to=s.input_max_len if _pads(job) else None,
        limit=s.input_max_len,
        caches=caches,
        prefill_chunk=s.prefill_chunk,
        on_token=(lambda row, text: tell(text)) if tell and streams else None,
    )[:count]
    if tell:
        tell("\n\n" if streams else "".join(f"{shown(g.prompt)}{g.text}\n\n" for g in found))
    return found


def shown(prompt: Prompt) -> str:
    """A prompt as a terminal shows it before its continuation."""
    return (
        prompt
        if isinstance(prompt, str)
        else "".join(f"{m['role']}: {m['content'] or ''}\n" for m in prompt)
    )


def _inputs(job: Job) -> dict[str, Any]:
    """What all ranks must have been given alike: their collectives would not fit each other."""
    s = job.settings
    return {
        "prompts": [str(p) for p in job.prompts],
        "sampling": str(job.sampling),
        "tokens that end a text": str(job.generation.eos_token_ids),
        "seed": job.seed,
        "plan": str(job.plan),
        "pad": job.pad,
        "dtype": str(job.dtype),
        "tokenizer_mode": s.tokenizer_mode,
        "batch_size": s.batch_size,
        "max_new_tokens": s.max_new_tokens,
        "input_max_len": s.input_max_len,
        "block_size": s.block_size,
    }
