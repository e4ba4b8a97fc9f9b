"""A file of prompts through slots: over real ranks the text of one, and every refusal before a weight is
read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3_port import PortError, PortPlan, generate, load_model, load_tokenizer
from dsv3_port.engine import serve
from dsv3_port.engine.launch import run_ranks
from dsv3_port.engine.request_file import Asked
from dsv3_port.engine.serve import ServeJob, ServeReport, run_serve, serve_rank
from dsv3_port.engine.settings import Settings
from dsv3_port.parallel import TensorParallel

DATA = Path(__file__).parents[2] / "data"
TINY = DATA / "tiny-dsv3"
PLAN = PortPlan.upto("paged_cache")
COUNT = 12


def job(asked: list[Asked], blocks: int | None = None, **values: Any) -> ServeJob:
    own = {k: values.pop(k) for k in ("temperature", "seed", "plan") if k in values}
    flags = {"model_dir": str(TINY), "max_new_tokens": COUNT, "batch_size": 2, "block_size": 16}
    settings = Settings.from_env_and_flags(flags | {"job_timeout": 60} | values, {})
    return ServeJob(
        settings,
        tuple(a.prompt for a in asked),
        **{"plan": PLAN} | own,
        device="cpu",
        asked=tuple(asked),
        blocks=blocks,
    )


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    texts = json.loads((DATA / "prompts.json").read_text())["completion"][:6]
    found = [Asked(f"p.txt, line {n}", text) for n, text in enumerate(texts, 1)]
    return [*found[:5], replace(found[5], max_new_tokens=5, seed=77)]


def ids(report: ServeReport | None) -> list[list[int]]:
    assert report is not None
    return [row["token_ids"] for row in report.rows]


@pytest.mark.parametrize("drawn", [{}, {"temperature": 0.9, "seed": 4}])
def test_the_texts_are_those_of_infer_s_loop(asked, drawn):
    """With the same seeds: prompt n's is the run's plus n. Text, ends and counts are told too."""
    model, tokenizer = load_model(TINY, PortPlan.full(), "cpu", "float32"), load_tokenizer(TINY)
    sampling = {"temperature": drawn.get("temperature", 0.0), "top_k": 50 if drawn else 0}
    want = [
        generate(
            model,
            tokenizer,
            [a.prompt],
            a.max_new_tokens or COUNT,
            seed=drawn.get("seed", 0) + n if a.seed is None else a.seed,
            **sampling,
        )[0]
        for n, a in enumerate(asked)
    ]
    report = run_serve(job(asked, **drawn))
    assert ids(report) == [g.token_ids for g in want]
    for n, (row, g) in enumerate(zip(report.rows, want, strict=True), 1):
        assert (row["number"], row["text"], row["prompt"]) == (n, g.text, g.prompt)
        assert row["prompt_tokens"] == g.prompt_tokens
        assert row["ended_by"] == ("eos" if g.token_ids[-1] == 1 else "length")
    assert (report.mode, report.graphs, report.later_graphs) == ("eager", 0, 0)
    assert report.slots == 2 and max(report.occupancy) == 2
    assert 0 < report.most_blocks <= report.blocks


def several(parallel: TensorParallel, jobs: list[ServeJob]) -> list[ServeReport | None]:
    return [serve_rank(parallel, each) for each in jobs]


def test_two_ranks_give_the_texts_of_one(asked):
    """Greedy and drawn, and with blocks for one request only: rank 0 schedules, rank 1 follows."""
    plans = [job(asked), job(asked, temperature=0.9), job(asked, blocks=3, batch_size=3)]
    ready = [
        serve.replace(found := serve.check_job(each), requests=serve._requests(found))
        for each in plans
    ]
    two = run_ranks(several, 2, ready, timeout_seconds=120)
    for each, report in zip(plans, two[0], strict=True):
        assert ids(report) == ids(run_serve(each)) and len(report.ranks) == 2
    assert two[1] == [None] * 3


def of_other_token(parallel: TensorParallel, each: ServeJob) -> None:
    """Rank 1's gate is another one."""
    if parallel.rank:
        drawn = serve.ContinuousBatch._took

        def other(self: Any, chosen: dict[int, int]) -> Any:
            return drawn(
                self, {row: token + len(self.occupancy) // 3 for row, token in chosen.items()}
            )

        serve.ContinuousBatch._took = other  # type: ignore[method-assign]
    serve_rank(parallel, each)


def test_a_rank_that_chose_another_token_ends_the_job(asked):
    found = serve.check_job(job(asked, world_size=2))
    ready = serve.replace(found, requests=serve._requests(found))
    with pytest.raises(
        PortError, match=r"rank 1 .* chose token \d+ for request [01], rank 0 chose"
    ):
        run_ranks(of_other_token, 2, ready, timeout_seconds=60)


@pytest.mark.parametrize(
    ("values", "odd", "words"),
    [
        (
            {"blocks": 1},
            {"max_new_tokens": 6},
            r"line 2: a prompt of 16 tokens and 12 new .*2 blocks of 16, .* has 1",
        ),
        ({"blocks": 0}, {}, "a paged cache of 0 blocks"),
        ({"input_max_len": 12}, {}, "line 2: a prompt has 16 tokens, more than INPUT_MAX_LEN = 12"),
        (
            {},
            {"max_new_tokens": 1020},
            "line 1: a prompt of 11 tokens and 1020 new .* 1024 positions",
        ),
        ({}, {"prompt": "a\ud800"}, "p.txt, line 1 holds half of a character"),
        (
            {"plan": PortPlan.full(), "block_size": None},
            {},
            "slots need a paged cache, and this plan's is 'fixed'",
        ),
        ({"seed": 2**64, "temperature": 1.0}, {}, "line 1: seed must be within"),
        ({"temperature": -1.0}, {}, "temperature must be 0"),
        ({"num_speculative_tokens": 1}, {}, "NUM_SPECULATIVE_TOKENS=1: slots do not draft"),
    ],
)
def test_what_cannot_run_is_refused_before_a_weight_is_read(asked, values, odd, words, monkeypatch):
    monkeypatch.setattr(serve, "run_job", None)
    short, long = asked[0], asked[1]
    assert [len(load_tokenizer(TINY)(a.prompt)["input_ids"]) for a in (short, long)] == [11, 16]
    with pytest.raises(PortError, match=words):
        run_serve(job([replace(short, **odd), long], **values))


def test_the_mtp_layer_of_a_plan_is_not_loaded(asked, monkeypatch):
    """Nothing drafts in slots: what `production` names beside them would be memory for nothing."""
    seen: list[ServeJob] = []
    monkeypatch.setattr(serve, "run_job", lambda job, work: seen.append(job))
    run_serve(job(asked, plan=PortPlan.production()))
    assert seen[0].plan == PLAN and PortPlan.production().mtp


def test_damaged_weights_name_the_request(asked, monkeypatch):
    found = serve.check_job(job(asked))
    load = serve.load_rank

    def broken(*given: Any, **more: Any) -> Any:
        tokenizer, model = load(*given, **more)
        with torch.no_grad():
            model.model.layers[2].mlp.gate.weight[:] = float("nan")
        return tokenizer, model

    monkeypatch.setattr(serve, "load_rank", broken)
    with pytest.raises(PortError, match=r"request 0: the logits after 11 tokens are not finite"):
        serve_rank(TensorParallel(), replace(found, requests=serve._requests(found)))
