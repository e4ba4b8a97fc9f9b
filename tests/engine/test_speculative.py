"""Part II, step 10: decoding with drafts. The tokens are those of decoding one by one, whatever is
drafted, wherever blocks, capacity and ends lie; drawn tokens keep their distribution, by exact
probabilities. The layer that drafts is held in tests/model/test_mtp.py."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3_port import PortPlan, generate, load_model, load_tokenizer
from dsv3_port.count.captured import load
from dsv3_port.engine import decoding, speculative
from dsv3_port.engine.caches import Caches
from dsv3_port.engine.decoding import Batch, Decoded
from dsv3_port.engine.graph import compile_steps
from dsv3_port.engine.loading import with_plan
from dsv3_port.engine.rejection import acceptance, residual
from dsv3_port.engine.sampler import Sampler, Sampling
from dsv3_port.engine.streamer import TextStreamer
from dsv3_port.errors import PortError
from dsv3_port.model.cache import Cache
from dsv3_port.model.decoder import DeepseekV3
from dsv3_port.model.paged_cache import PagedCache, Paging
from dsv3_port.ops.checks import ContractError
from tests.random_models import CONFIG, random_model

DATA = Path(__file__).parents[2] / "data"
TINY = DATA / "tiny-dsv3"
FULL = PortPlan.full()
PLANS = {"fixed": FULL.plus("mtp"), "paged": PortPlan.upto("10")}
Right = Callable[[int, int], bool]  # whether row b's draft of its token i is right


def poisoned(model: DeepseekV3, block: int = 16) -> DeepseekV3:
    model.paging = Paging(block, poison=math.nan)
    return model


@pytest.fixture(scope="module")
def plain() -> DeepseekV3:
    return random_model(FULL)


@pytest.fixture(scope="module", params=PLANS)
def ahead(request) -> DeepseekV3:
    return poisoned(random_model(PLANS[request.param]))


def run(
    how: Any,
    model: DeepseekV3,
    prompts: list[list[int]],
    most: int,
    stop: set[int] | None = None,
    chunk: int = 0,
) -> tuple[list[list[int]], Decoded, Caches]:
    """Tokens of each row, greedy, through caches of just the positions that they need."""
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    caches = Caches.make(model, len(prompts), width, most)
    streamer = TextStreamer(None, len(prompts), stop or set(), None)
    batch = Batch(model, caches, Sampler.greedy(), streamer, most)
    return streamer.out, how.run(batch, ids, mask, chunk)[1], caches


def texts(lengths: list[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, CONFIG.vocab_size) for _ in range(n)] for n in lengths]


def scripted(
    model: DeepseekV3, whole: list[list[int]], right: Right, patch: pytest.MonkeyPatch
) -> None:
    """Drafts that are right where `right` says so: whole[b] are prompt and continuation of row b. The
    MTP layer still computes and writes its rows."""
    real, prefilled = model.run_draft, itertools.count()

    def run_draft(next_ids: Tensor, pad: Tensor, cache: Cache, first: bool, *hidden: Any) -> Tensor:
        at = (cache.slot - cache.pad + int(first) * (next_ids.shape[1] - 1)).tolist()
        logits = real(next_ids, pad, cache, first, *hidden)
        rows = [next(prefilled)] if first else range(len(next_ids))
        out = torch.zeros_like(logits)
        for b, row in enumerate(rows):
            for j in range(logits.shape[1]):
                i = at[b] + j + 2
                token = whole[row][i] if 0 <= i < len(whole[row]) else 0
                out[b, j, token if right(row, i) else (token + 1) % CONFIG.vocab_size] = 1
        return out

    patch.setattr(model, "run_draft", run_draft)


def always(row: int, i: int) -> bool:
    return True


def never(row: int, i: int) -> bool:
    return False


def often(row: int, i: int) -> bool:
    return random.Random(1000 * row + i).random() < 0.7


def balanced(caches: Caches) -> bool:
    cache = caches.batch
    return not isinstance(cache, PagedCache) or sorted(cache.free) == list(
        range(1, cache.blocks + 1)
    )


# ---- greedy: the same tokens ---------------------------------------------------------------------


@pytest.mark.parametrize("right", [always, never, often])
@pytest.mark.parametrize("lengths", [[13, 1, 16, 7], [31, 32, 15]])
def test_the_tokens_are_those_of_decoding_one_by_one(
    plain, ahead, right, lengths, monkeypatch
) -> None:
    """Caches that hold no position more than the tokens need: rows that accept differently, block
    boundaries in front of, within and behind a pair, NaN in freed blocks."""
    prompts = texts(lengths)
    longest = run(decoding, plain, prompts, 19)[0]
    whole = [p + more for p, more in zip(prompts, longest, strict=True)]
    for most in (1, 2, 3, 6, 18, 19):
        with monkeypatch.context() as patch:
            scripted(ahead, whole, right, patch)
            got, found, caches = run(speculative, ahead, prompts, most)
        assert got == [row[:most] for row in longest], most
        assert balanced(caches)
        for row, accepted in enumerate(found.accepted):
            i, want = len(prompts[row]) + 1, []
            while i < len(prompts[row]) + most:
                want.append(int(right(row, i)))
                i += 1 + want[-1]
            assert accepted == want, (most, row)
        if right is always:
            assert {len(a) for a in found.accepted} == {most // 2}
        if right is never:
            assert {len(a) for a in found.accepted} == {most - 1}


@pytest.mark.parametrize("right", [always, often])
def test_an_end_in_the_drafted_or_the_accepted_place(plain, ahead, right, monkeypatch) -> None:
    """Any token of the continuation as the one that ends a text: at the first place of a step nothing
    behind it is emitted, at the second it is; the other row goes on."""
    prompts = texts([14, 9], seed=3)
    longest = run(decoding, plain, prompts, 12)[0]
    whole = [p + more for p, more in zip(prompts, longest, strict=True)]
    lengths = set()
    for stop in longest[0]:
        want = run(decoding, plain, prompts, 12, {stop})[0]
        with monkeypatch.context() as patch:
            scripted(ahead, whole, right, patch)
            got, _, caches = run(speculative, ahead, prompts, 12, {stop})
        assert got == want and balanced(caches)
        lengths |= {len(row) for row in got}
    assert len(lengths) > 6 and {n % 2 for n in lengths} == {0, 1}


@pytest.mark.parametrize("chunk", [1, 2, 5, 16])
def test_prompts_in_chunks(plain, ahead, chunk) -> None:
    """The MTP layer's rows of a chunk need the first token of the next one. Drafts are the layer's
    own; whether they are right must not depend on the chunks."""
    prompts = texts([33, 12, 2], seed=5)
    got, found, _ = run(speculative, ahead, prompts, 12, chunk=chunk)
    assert got == run(decoding, plain, prompts, 12)[0]
    assert found.accepted == run(speculative, ahead, prompts, 12)[1].accepted


def test_random_batches(plain, ahead, monkeypatch) -> None:
    """10 ragged batches, drafts right at random."""
    for seed in range(10):
        rng = random.Random(seed)
        prompts = texts([rng.randint(1, 40) for _ in range(rng.randint(1, 4))], seed)
        most = rng.randint(1, 30)
        want = run(decoding, plain, prompts, most)[0]
        whole = [p + more for p, more in zip(prompts, want, strict=True)]
        chance = rng.random()

        def right(row: int, i: int, chance: float = chance, seed: int = seed) -> bool:
            return random.Random(f"{seed} {row} {i}").random() < chance

        with monkeypatch.context() as patch:
            scripted(ahead, whole, right, patch)
            got, _, caches = run(speculative, ahead, prompts, most)
        assert got == want and balanced(caches), seed


# ---- the embedded model, whose MTP layer is trained ----------------------------------------------


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return list(json.loads((DATA / "prompts.json").read_text())["completion"])


@pytest.fixture(scope="module")
def text(prompts) -> list[list[int]]:
    model = load_model(TINY, FULL, "cpu", "float32")
    return [g.token_ids for g in generate(model, load_tokenizer(TINY), prompts, 40)]


@pytest.mark.parametrize("plan", PLANS)
def test_every_prompt_of_the_embedded_model(plan, prompts, text) -> None:
    """All of data/prompts.json as one ragged batch; the trained layer is right more often than not."""
    model = poisoned(load_model(TINY, PLANS[plan], "cpu", "float32"))
    found = generate(model, load_tokenizer(TINY), prompts, 40)
    assert [g.token_ids for g in found] == text
    drafted = sum(len(g.accepted) for g in found)
    accepted = sum(sum(g.accepted) for g in found)
    print(f"{accepted} of {drafted} drafts accepted")
    assert accepted > drafted / 2
    again = generate(model, load_tokenizer(TINY), prompts[:1], 40)[0]
    assert again.accepted == found[0].accepted, "a row's drafts do not depend on its batch"
    without = generate(model, load_tokenizer(TINY), prompts, 40, num_speculative_tokens=0)
    assert [g.token_ids for g in without] == text and not any(g.accepted for g in without)


def test_compiled_by_inductor(prompts) -> None:
    """Pairs are one shape: prompt, pair and both calls of the MTP layer are four graphs."""
    torch._dynamo.reset()
    plain, model = (load(TINY, plan, "cpu", "float32", layers=2) for plan in (FULL, PLANS["paged"]))
    text = [g.token_ids for g in generate(plain, load_tokenizer(TINY), prompts[:3], 40)]
    poisoned(model)
    compile_steps(model, "ge")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = generate(model, load_tokenizer(TINY), prompts[:3], 40, pad_to=32)
    assert [g.token_ids for g in found] == text and any(g.accepted for g in found)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before == 4


@pytest.mark.parametrize("plan", PLANS)
def test_the_models_own_accept_is_asked_once_a_step(plan, prompts, text) -> None:
    """What a learner writes in its place decides: refusing every draft leaves the text, and takes a
    step a token. A twin has its own; drawn text does not ask it."""
    model, tokenizer = load_model(TINY, PLANS[plan], "cpu", "float32"), load_tokenizer(TINY)
    calls = []

    def never(logits: Tensor, drafted: Tensor) -> Tensor:
        calls.append(tuple(logits.shape[:2]))
        first = logits[:, 0].argmax(-1)
        return torch.stack((first, first, torch.zeros_like(first)), 1)

    model.accept = never
    found = generate(model, tokenizer, prompts[:3], 40)
    assert [g.token_ids for g in found] == text[:3] and not any(sum(g.accepted) for g in found)
    assert calls == [(3, 2)] * (max(map(len, text[:3])) - 1)
    assert any(
        sum(g.accepted) for g in generate(with_plan(model, model.plan), tokenizer, prompts[:3], 8)
    )
    generate(model, tokenizer, prompts[:1], 8, temperature=1.0)
    assert len(calls) == max(map(len, text[:3])) - 1


def test_text_comes_as_it_is_made(prompts, text) -> None:
    model = load_model(TINY, PLANS["fixed"], "cpu", "float32")
    tokenizer, said = load_tokenizer(TINY), []
    generate(model, tokenizer, prompts[:1], 40, on_token=lambda row, new: said.append(new))
    assert "".join(said) == tokenizer.decode(text[0], skip_special_tokens=True)


# ---- drawn tokens: the same distribution ---------------------------------------------------------


CASES = [(1.0, 0, 1.0), (0.7, 0, 0.9), (1.3, 20, 1.0), (0.3, 5, 0.8), (1.0, 1, 1.0)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CASES)
def test_what_is_emitted_has_the_models_probabilities(temperature, top_k, top_p) -> None:
    """All 1024 tokens at 32 positions of the embedded model, in float64: drafted and kept, or refused
    and drawn anew, sums to p exactly."""
    model = load_model(TINY, PLANS["fixed"].replace(lm_head="all"), "cpu", "float32")
    ids = torch.tensor([load_tokenizer(TINY).encode("Once upon a time there was a cat. " * 5)[:33]])
    cache = model.new_cache(1, 40)
    with torch.no_grad():
        logits, hidden = model.verify_step(ids[:, :-1], cache.pad, cache, True)
        drafts = model.draft_step(ids[:, 1:], cache.pad, cache, True, hidden)
    sampling = Sampling(temperature, top_k, top_p)
    # drafts of token i + 2 stand beside the main logits of position i + 1
    p, q = (
        sampling.kept(x.double() / temperature).softmax(-1) for x in (logits[0, 1:], drafts[0, :-1])
    )
    kept = q * acceptance(p, q)
    emitted = kept + (1 - kept.sum(-1, keepdim=True)) * residual(p, q)
    assert float((emitted - p).abs().max()) < 1e-14
    assert bool((residual(p, q).sum(-1) - 1).abs().max() < 1e-12)
    if top_k != 1:
        assert float((p - q).abs().max()) > 0.1, "or nothing is shown"


def test_rejection_at_its_edges() -> None:
    p = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    q = p.flip(0)
    assert acceptance(p, q).tolist() == [0, 0, 0, 0] and residual(p, q).equal(p)
    assert acceptance(p, p).tolist() == [1, 1, 0, 0] and residual(p, p).equal(p)


class Tree(Sampler):
    """Takes every way through the random choices, one after the other, with its probability."""

    def __init__(self, sampling: Sampling) -> None:
        super().__init__(sampling, [0], str)
        self.way: list[int] = []
        self.open: list[int] = []

    def start(self) -> None:
        self.at, self.weight = 0, 1.0

    def choose(self, chances: list[float]) -> int:
        if self.at == len(self.way):
            self.way.append(0)
            self.open.append(len(chances))
        self.at += 1
        self.weight *= chances[self.way[self.at - 1]]
        return self.way[self.at - 1]

    def turn(self) -> bool:
        """The next way; False where all were taken."""
        while self.way and self.way[-1] + 1 == self.open[-1]:
            self.way.pop()
            self.open.pop()
        if self.way:
            self.way[-1] += 1
        return bool(self.way)

    def pick(self, chances: Tensor, row: int) -> int:
        possible = chances.nonzero().flatten().tolist()
        return int(possible[self.choose([float(chances[t]) for t in possible])])

    def passes(self, chance: float, row: int) -> bool:
        ways = [(True, chance), (False, 1 - chance)]
        ways = [(passed, c) for passed, c in ways if c > 0]
        return ways[self.choose([c for _, c in ways])][0]


def every_way(model: DeepseekV3, prompt: Tensor, sampling: Sampling, most: int) -> dict[Any, float]:
    """Continuation -> probability, through the whole loop."""
    tree, found = Tree(sampling), {}
    caches = Caches.make(model, 1, prompt.shape[1], most)
    while True:
        tree.start()
        streamer = TextStreamer(None, 1, set(), None)
        batch = Batch(model, caches, tree, streamer, most)
        speculative.run(batch, prompt, torch.ones_like(prompt), 0)
        key = tuple(streamer.out[0])
        found[key] = found.get(key, 0.0) + tree.weight
        if not tree.turn():
            return found


def one_by_one(
    model: DeepseekV3, prompt: list[int], sampling: Sampling, most: int
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Continuation and probability by the chain rule, no cache."""
    if not most:
        yield (), 1.0
        return
    logits = model(torch.tensor([prompt]))[:, -1] / sampling.temperature
    chances = sampling.kept(logits)[0].double().softmax(-1)
    for token in chances.nonzero().flatten().tolist():
        for rest, chance in one_by_one(model, [*prompt, token], sampling, most - 1):
            yield (token, *rest), float(chances[token]) * chance


@pytest.mark.parametrize(
    ("plan", "vocabulary", "most", "sampling"),
    [("fixed", 3, 2, Sampling(1.0)), ("paged", 4, 3, Sampling(2.0, 2))],
)
def test_every_way_through_the_loop(plan, vocabulary, most, sampling) -> None:
    """The joint distribution of the first tokens, by all ways through drafts, coins and draws, is that
    of the model alone. Catches a coin of the wrong ratio, a draw from p after a refusal, a second
    token drawn from the first's distribution."""
    config = CONFIG.replace(vocab_size=vocabulary, num_hidden_layers=1)
    model = poisoned(random_model(PLANS[plan], config))
    prompt = [1, 2, 0]
    got = every_way(model, torch.tensor([prompt]), sampling, most)
    want = dict(one_by_one(model, prompt, sampling, most))
    assert set(got) == set(want) and len(got) > 3
    assert max(abs(got[key] - want[key]) for key in want) < 1e-5
    assert sum(got.values()) == pytest.approx(1, abs=1e-5)


def wrong_coin(p: Tensor, q: Tensor) -> Tensor:
    return p.clamp(max=1)


def from_p(p: Tensor, q: Tensor) -> Tensor:
    return p


right_verify = speculative.verify


def first_for_second(logits: Tensor, *rest: Any) -> Tensor:
    return right_verify(logits[:, [0, 0]], *rest)


@pytest.mark.parametrize(
    ("name", "wrong", "case"),
    [
        ("acceptance", wrong_coin, (3, 2, Sampling(1.0))),
        ("residual", from_p, (3, 2, Sampling(1.0))),
        ("verify", first_for_second, (3, 3, Sampling(2.0, 2))),
    ],
)
def test_the_mutations_of_sampling(name, wrong, case, monkeypatch) -> None:
    monkeypatch.setattr(speculative, name, wrong)
    with pytest.raises(AssertionError):
        test_every_way_through_the_loop("fixed", *case)


def test_drawn_text_does_not_depend_on_the_batch(prompts) -> None:
    model = load_model(TINY, PLANS["paged"], "cpu", "float32")
    tokenizer, drawn = load_tokenizer(TINY), {"temperature": 0.8, "top_k": 40, "seed": 7}
    together = generate(model, tokenizer, prompts[:3], 24, **drawn)
    for number, one in enumerate(together):
        alone = generate(model, tokenizer, [prompts[number]], 24, first_number=number, **drawn)
        assert alone[0].token_ids == one.token_ids and alone[0].accepted == one.accepted
    assert any(g.accepted and 0 < sum(g.accepted) for g in together)


# ---- the wrong forms -----------------------------------------------------------------------------


def unverified(patch: pytest.MonkeyPatch) -> None:
    verify = speculative.verify

    def wrong(logits: Tensor, drafts: Any, *rest: Any) -> Tensor:
        said = verify(logits, drafts, *rest)
        said[:, 0], said[:, 1], said[:, 2] = drafts.tokens, logits[:, 1].argmax(-1), 1
        return said

    patch.setattr(speculative, "verify", wrong)


def not_rewound(patch: pytest.MonkeyPatch) -> None:
    retract = Cache.retract
    patch.setattr(
        Cache, "retract", lambda self, counts: retract(self, [n if n > 1 else 0 for n in counts])
    )


def rewound_for_all(patch: pytest.MonkeyPatch) -> None:
    """One row's refusal takes a position from every row."""
    retract = Cache.retract
    patch.setattr(
        Cache,
        "retract",
        lambda self, n: retract(self, [max(n)] * len(n) if max(n) == 1 else n),
    )


def only_the_host_rewinds(patch: pytest.MonkeyPatch) -> None:
    retract = Cache.retract

    def wrong(self: Cache, counts: list[int]) -> None:
        slot = self.slot.clone()
        retract(self, counts)
        if max(counts) == 1:
            self.slot.copy_(slot)

    patch.setattr(Cache, "retract", wrong)


def second_place_of_a_refused_draft(patch: pytest.MonkeyPatch) -> None:
    """The second logits are believed whatever the draft was."""
    verify = speculative.verify

    def wrong(logits: Tensor, drafts: Any, *rest: Any) -> Tensor:
        said = verify(logits, drafts, *rest)
        said[:, 1], said[:, 2] = logits[:, 1].argmax(-1), 1
        return said

    patch.setattr(speculative, "verify", wrong)


WRONG = [
    unverified,
    not_rewound,
    rewound_for_all,
    only_the_host_rewinds,
    second_place_of_a_refused_draft,
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
def test_the_mutations(plain, ahead, wrong, monkeypatch) -> None:
    prompts = texts([13, 9])
    want = run(decoding, plain, prompts, 16)[0]
    whole = [p + more for p, more in zip(prompts, want, strict=True)]
    with monkeypatch.context() as patch:
        scripted(ahead, whole, often, patch)
        assert run(speculative, ahead, prompts, 16)[0] == want
    wrong(monkeypatch)
    scripted(ahead, whole, often, monkeypatch)
    try:
        got = run(speculative, ahead, prompts, 16)[0]
    except (PortError, ContractError, RuntimeError):  # the cache is full before its time
        return
    assert got != want


def test_rows_of_a_prompt_that_the_layer_misses(text, prompts, monkeypatch) -> None:
    """Without its own rows of the prompt the layer drafts worse, and the text stays: only counting
    tells (0.90 and 0.86 when this was written). tests/count/test_speculation.py holds the right ones
    against those over the whole text at once."""
    model = load_model(TINY, PLANS["fixed"], "cpu", "float32")
    tokenizer = load_tokenizer(TINY)
    right = generate(model, tokenizer, prompts, 40)
    adopt = Cache.adopt

    def forgetful(self: Cache, one: Cache, row: int) -> None:
        one.buffers[-1][0].zero_()
        adopt(self, one, row)

    monkeypatch.setattr(Cache, "adopt", forgetful)
    wrong = generate(model, tokenizer, prompts, 40)
    assert [g.token_ids for g in wrong] == text
    shares = [
        sum(sum(g.accepted) for g in x) / sum(len(g.accepted) for g in x) for x in (right, wrong)
    ]
    assert shares[1] < shares[0], shares


# ---- what bad input gets -------------------------------------------------------------------------


def test_bad_input_is_named(plain, ahead) -> None:
    with pytest.raises(PortError, match=r"num_speculative_tokens is 2; one MTP layer drafts 1"):
        speculative.wanted(ahead, 2)
    with pytest.raises(PortError, match="needs the MTP layer.*step 'mtp'"):
        speculative.wanted(plain, 1)
    with pytest.raises(PortError, match="rows can be cut: 'fixed'"):
        speculative.wanted(random_model(PortPlan(mtp=True)), 1)
    assert not speculative.wanted(plain, None) and speculative.wanted(ahead, None)
    assert not speculative.wanted(ahead, 0)
    cache = ahead.new_cache(2, 20)
    with pytest.raises(PortError, match="row 1 of the cache holds 0 positions, and 1 cannot"):
        cache.retract([0, 1])
    cache.require_capacity(5)
    cache.advance(5)
    cache.retract([0, 2])
    with pytest.raises(PortError, match="rewind to 4 positions: a row of the cache holds 3"):
        cache.rewind(4)
    cache.rewind(3)
    assert cache.length == 3 and cache.behind == [0, 0]
    with pytest.raises(PortError, match="growing cache cannot be cut one by one"):
        random_model(PortPlan(mtp=True)).new_cache(1, 8).retract([0])
