"""A file of prompts through slots: requests checked before any weight is read, one batch over all
ranks, and what came of it. Not a server: see engine/continuous.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from ..config import DeepseekV3Config
from ..errors import PortError
from ..model.decoder import DeepseekV3
from ..model.paged_cache import Paging
from ..parallel import TensorParallel
from .agreement import tokens_agree
from .continuous import ContinuousBatch, Request, Result, run_requests
from .graph import compile_steps, label, made
from .job import Job, check_job, load_rank, run_job
from .report import RankMemory, rank_memory
from .request_file import Asked
from .sampler import Sampling, check_seed
from .tokenizer import check_length, encode, load_tokenizer

# without times: a step's count says what is to be compared, and a stand-in's times mean nothing
BAR = "{desc}: {n_fmt}/{total_fmt} |{bar}|{postfix}"


@dataclass(frozen=True)
class ServeJob(Job):
    """A Job whose prompts come from `asked`; settings.batch_size is the number of slots. blocks: of
    the whole cache; None: as many as its slots can fill."""

    asked: tuple[Asked, ...] = ()
    blocks: int | None = None
    requests: tuple[Request, ...] = ()  # what run_serve makes of `asked`


@dataclass(frozen=True)
class ServeReport:
    """The whole run, as rank 0 saw it. rows: a result for each prompt, in the file's order, as they
    are written."""

    model_name: str
    slots: int
    mode: str
    dtype: str
    sampling: Sampling
    rows: list[dict[str, Any]]
    occupancy: list[int]  # running rows of every decode step
    graphs: int  # made before the first request
    later_graphs: int  # made while requests ran: none, or something is wrong
    block_size: int
    blocks: int
    most_blocks: int  # that were in use at once
    ranks: list[RankMemory]

    @property
    def tokens(self) -> list[int]:
        """How many new ones each request came to, in the order of arrival."""
        return [len(row["token_ids"]) for row in self.rows]


def run_serve(job: ServeJob) -> ServeReport | None:
    """Run it; rank 0's report, None on another rank that was started by somebody else. PortError, with
    file and line, before any weight is read where a request can never run.

    Slots do not draft: a plan's MTP layer is not loaded."""
    checked = check_job(replace(job, plan=job.plan.replace(mtp=False)))
    assert isinstance(checked, ServeJob)
    if checked.plan.mtp:
        raise PortError(
            "NUM_SPECULATIVE_TOKENS=1: slots do not draft, and the MTP layer would be loaded for nothing: "
            "leave the setting out, or take `dsv3-port infer`"
        )
    found: ServeReport | None = run_job(replace(checked, requests=_requests(checked)), serve_rank)
    return found


def _requests(job: ServeJob) -> tuple[Request, ...]:
    """What each prompt of the file becomes; PortError, with its place, where it cannot run."""
    s, asked = job.settings, job.asked
    if job.plan.cache != "paged":
        raise PortError(
            f"slots need a paged cache, and this plan's is {job.plan.cache!r}: leave --plan out, or add the "
            "step 'paged_cache'"
        )
    Paging(s.block_size, job.blocks)  # raises
    tokenizer, config = load_tokenizer(s.model_dir), DeepseekV3Config.from_pretrained(s.model_dir)
    rows = encode(tokenizer, [a.prompt for a in asked], job.chat, [a.place for a in asked])
    made = []
    for n, row in enumerate(rows):
        new, seed = asked[n].max_new_tokens, asked[n].seed
        request = Request(
            tuple(row),
            s.max_new_tokens if new is None else new,
            job.seed + n if seed is None else seed,
        )
        try:
            _require(request, config, s.input_max_len, s.block_size, job.blocks)
        except PortError as error:
            raise PortError(f"{asked[n].place}: {error}") from None
        made.append(request)
    return tuple(made)


def _require(
    request: Request, config: DeepseekV3Config, limit: int, block_size: int, blocks: int | None
) -> None:
    length, new = len(request.ids), request.max_new_tokens
    if max(request.ids) >= config.vocab_size:
        raise PortError(
            f"the tokenizer gives id {max(request.ids)}, the model's vocabulary has {config.vocab_size}: is "
            "tokenizer.json the one that belongs to these weights?"
        )
    check_seed(request.seed)
    check_length(length, limit)
    if length + new > config.max_position_embeddings:
        raise PortError(
            f"a prompt of {length} tokens and {new} new ones are more than the model's "
            f"{config.max_position_embeddings} positions: shorten it, or ask for fewer"
        )
    if blocks is not None and request.positions > blocks * block_size:
        raise PortError(
            f"a prompt of {length} tokens and {new} new ones may need {-(-request.positions // block_size)} "
            f"blocks of {block_size}, and the cache has {blocks}: give it more (--blocks), or ask for fewer "
            "tokens"
        )


def serve_rank(
    parallel: TensorParallel, job: ServeJob, card: int | None = None
) -> ServeReport | None:
    """One rank's part; the report on rank 0."""
    s, requests = job.settings, job.requests
    more = {"requests": str(requests), "blocks": job.blocks}
    tokenizer, model = load_rank(parallel, job, card, **more)
    model.paging = Paging(s.block_size, job.blocks)
    if made(model) == "aclgraph":  # the eager kernels in one NPUGraph, whose captures are counted
        compile_steps(model, "captured")
    stop = set(model.config.eos_token_ids) or {tokenizer.eos_token_id} - {None}
    batch = ContinuousBatch(
        model,
        s.batch_size,
        max(r.positions for r in requests),
        stop,
        job.sampling,
        s.prefill_chunk,
    )
    if s.graph != "eager":
        batch.warm_up()
    graphs = batch.captures
    with tqdm(
        total=len(requests),
        desc="requests",
        bar_format=BAR,
        mininterval=1.0,
        disable=not job.progress or parallel.rank > 0,
    ) as bar:

        def on_step(done: list[Result]) -> None:
            bar.set_postfix_str(f"step {len(batch.occupancy)}, {len(batch.running)} running", False)
            bar.update(len(done))

        results = run_requests(batch, requests, on_step)
    memory = rank_memory(model, s.batch_size, batch.cache.max_length)
    ranks = tokens_agree(parallel, memory, [r.token_ids for r in results])
    if parallel.rank:
        return None
    return _report(job, model, tokenizer, batch, results, ranks, graphs)


def _report(
    job: ServeJob,
    model: DeepseekV3,
    tokenizer: Any,
    batch: ContinuousBatch,
    results: Sequence[Result],
    ranks: list[RankMemory],
    graphs: int,
) -> ServeReport:
    rows = [
        {
            "number": result.number + 1,
            "prompt": asked.prompt,
            "text": tokenizer.decode(result.token_ids, skip_special_tokens=True),
            "token_ids": result.token_ids,
            "prompt_tokens": len(request.ids),
            "ended_by": result.ended_by,
            "admitted_at_step": result.admitted,
            "ended_at_step": result.ended,
        }
        for asked, request, result in zip(job.asked, job.requests, results, strict=True)
    ]
    return ServeReport(
        job.settings.model_name,
        batch.slots,
        label(model),
        str(model.dtype).removeprefix("torch."),
        job.sampling,
        rows,
        batch.occupancy,
        graphs,
        batch.captures - graphs,
        batch.cache.block_size,
        batch.cache.blocks,
        batch.most_blocks,
        ranks,
    )
