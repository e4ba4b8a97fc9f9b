"""CapturedStep (engine/capture.py) on torch.npu.NPUGraph: what is captured, what a replay does, what
is refused. torch.cuda.CUDAGraph has the same interface; no GPU runs these tests."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import dsv3_port
from dsv3_port import PortPlan, generate, load_tokenizer
from dsv3_port.bench.workload import Workload
from dsv3_port.count.compiled import eager_prefill
from dsv3_port.engine.capture import CapturedStep
from dsv3_port.engine.graph import compile_steps, made, run_eager
from dsv3_port.engine.loading import with_plan
from dsv3_port.errors import PortError
from dsv3_port.hostnpu import tape
from dsv3_port.model.decoder import DeepseekV3
from tests.hostnpu.inside import short
from tests.hostnpu.inside.short import TINY

FULL = PortPlan.full()
MODEL_FILES = Path(dsv3_port.__file__).parent / "model"


def pair(plan: PortPlan = FULL, **options: Any) -> tuple[DeepseekV3, DeepseekV3]:
    """A model and its twin on the same weights, captured."""
    eager = short.load(plan)
    return eager, compile_steps(with_plan(eager, eager.plan), "captured", **options)


def step_of(model: DeepseekV3) -> CapturedStep:
    assert isinstance(model.run_step, CapturedStep)
    return model.run_step


def counts() -> tuple[int, int]:
    assert tape.tapes is not None
    return tape.tapes.captured, tape.tapes.replayed


def ids(batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 200, (batch, length), generator=generator).npu()


def test_logits_and_caches_are_those_of_the_eager_model_bit_for_bit() -> None:
    eager, captured = pair()
    captures, replays = counts()
    text = ids(2, 8 + 6)
    caches = [m.new_cache(2, 16) for m in (eager, captured)]
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[0, :3] = 0
    for n, part in enumerate(text.split([8] + [1] * 6, dim=1)):
        first = (mask.npu(),) if n == 0 else (None,)
        a, b = (m(part, *first, c) for m, c in zip((eager, captured), caches, strict=True))
        assert torch.equal(a.cpu(), b.cpu()), n
    for one, other in zip(caches[0].buffers, caches[1].buffers, strict=True):
        assert all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(one, other, strict=True))
    assert torch.equal(caches[0].slot.cpu(), caches[1].slot.cpu())
    assert counts() == (captures + 2, replays + 7)  # prefill and decode; every call replays
    assert made(captured) == "captured" and len(step_of(captured).graphs) == 2


def test_without_a_cache_too() -> None:
    eager, captured = pair()
    for seed in (0, 1):
        text = ids(1, 5, seed)
        assert torch.equal(eager(text).cpu(), captured(text).cpu())
    padded, mask = ids(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]).npu()
    for given in (mask, mask.flip(0)):
        assert torch.equal(eager(padded, given).cpu(), captured(padded, given).cpu())


def frames_of_a_step(model: DeepseekV3, token: Tensor, cache: Any) -> set[str]:
    """Functions of dsv3_port/model that run in one decode step."""
    seen: set[str] = set()

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and Path(frame.f_code.co_filename).parent == MODEL_FILES:
            seen.add(frame.f_code.co_name)

    sys.setprofile(watch)
    try:
        model(token, cache=cache)
    finally:
        sys.setprofile(None)
    return seen


def test_a_replay_runs_none_of_the_steps_python() -> None:
    eager, captured = pair()
    caches = {m: m.new_cache(1, 32) for m in (eager, captured)}
    for m, cache in caches.items():
        m(ids(1, 8), cache=cache)
        m(ids(1, 1), cache=cache)
    around = {
        "forward",
        "_check",
        "_advance",
        "require_capacity",
        "advance",
        "device",
        "dtype",
        "left_padding",
    }
    assert frames_of_a_step(captured, ids(1, 1), caches[captured]) <= around
    assert len(frames_of_a_step(eager, ids(1, 1), caches[eager]) - around) > 10

    def never(*_: Any) -> Tensor:
        raise AssertionError("the step's Python was entered")

    captured.forward_step = never
    step_of(captured).step = never
    captured(ids(1, 1), cache=caches[captured])


def test_inputs_changed_in_place_change_the_output() -> None:
    eager, captured = pair(clone_output=False)
    cache = captured.new_cache(1, 16)
    captured(ids(1, 4), cache=cache)
    captured(ids(1, 1), cache=cache)
    graph = step_of(captured).graphs[-1]
    logits = []
    for token in (5, 9, 5):
        graph.ids.fill_(token)
        cache.rewind(5)
        graph.graph.replay()
        logits.append(graph.logits.cpu())
    assert torch.equal(logits[0], logits[2]) and not torch.equal(logits[0], logits[1])
    other = eager.new_cache(1, 16)
    for part in (ids(1, 4), ids(1, 1)):
        eager(part, cache=other)
    want = eager(torch.tensor([[9]]).npu(), cache=other).cpu()
    assert torch.equal(logits[1], want)
    # weights, the cache's contents and its padding are read where they lie, too
    with torch.no_grad():
        for model_input in (captured.model.norm.weight, cache.buffers[0][0][:, :, :4], cache.pad):
            before = model_input.clone()
            cache.rewind(5)
            model_input.copy_(before + 1)
            graph.graph.replay()
            assert not torch.equal(graph.logits.cpu(), logits[2])
            model_input.copy_(before)


def test_logits_are_copied_out_or_handed_out() -> None:
    for clone in (True, False):
        captured = pair(clone_output=clone)[1]
        cache = captured.new_cache(1, 16)
        captured(ids(1, 4), cache=cache)
        kept = [captured(ids(1, 1, n), cache=cache) for n in range(4)]
        assert len({row.data_ptr() for row in kept}) == (4 if clone else 1)


def test_one_graph_for_each_batch_length_and_cache_and_it_goes_with_the_cache() -> None:
    captured = pair()[1]
    first = counts()[0]
    caches = [captured.new_cache(1, 16), captured.new_cache(1, 16), captured.new_cache(2, 16)]
    for _ in range(2):
        for cache in caches:
            cache.rewind(0)
            for part in ids(cache.batch, 6).split([4, 1, 1], dim=1):
                captured(part, cache=cache)
    assert counts()[0] - first == len(step_of(captured).graphs) == 2 * len(caches)
    del cache, caches[0]
    gc.collect()
    assert len(step_of(captured).graphs) == 4


def test_a_step_is_captured_anew_when_all_its_graphs_have_gone() -> None:
    """Two texts one after the other, each with caches of its own: the pool of the first is not taken
    again."""
    eager, captured = pair()
    for seed in (0, 1):
        cache, text = captured.new_cache(1, 16), ids(1, 4, seed)
        assert torch.equal(captured(text, cache=cache).cpu(), eager(text).cpu())
        del cache
        gc.collect()
        assert not step_of(captured).graphs


def test_more_captures_than_allowed_are_refused() -> None:
    captured = pair(captures=2)[1]
    for length in (3, 4):
        captured(ids(1, length))
    with pytest.raises(PortError, match="2 graphs are captured.*pad prompts"):
        captured(ids(1, 5))
    captured(ids(1, 4))  # what is captured goes on


def decoding(**options: Any) -> tuple[DeepseekV3, Any]:
    captured = pair(**options)[1]
    cache = captured.new_cache(1, 16)
    for part in ids(1, 5).split([4, 1], dim=1):
        captured(part, cache=cache)
    return captured, cache


def test_a_weight_at_another_address_is_an_error_that_names_it() -> None:
    captured, cache = decoding()
    weight = captured.model.layers[1].self_attn.o_proj.weight
    weight.data = weight.data.clone()
    with pytest.raises(
        PortError, match=r"model\.layers\.1\.self_attn\.o_proj\.weight lies at another"
    ):
        captured(ids(1, 1), cache=cache)
    captured, cache = decoding()
    captured.load_state_dict(
        {name: t.clone() for name, t in captured.state_dict().items()}, assign=True
    )
    with pytest.raises(PortError, match=r"weight lies at another address.*in place"):
        captured(ids(1, 1), cache=cache)


@pytest.mark.parametrize("what", ["slot", "pad", "buffer"])
def test_a_cache_at_another_address_is_an_error_that_names_it(what: str) -> None:
    captured, cache = decoding()
    if what == "buffer":
        cache.buffers[1][0] = cache.buffers[1][0].clone()
    else:
        setattr(cache, what, getattr(cache, what).clone())
    named = {"slot": "cache's slot", "pad": "cache's padding", "buffer": "buffer 0 of .* layer 1"}
    with pytest.raises(PortError, match=f"{named[what]} lies at another address"):
        captured(ids(1, 1), cache=cache)


def test_a_write_that_makes_new_memory_is_refused() -> None:
    captured = pair()[1]
    captured.write = lambda buffer, new, slot: buffer.clone()
    cache = captured.new_cache(1, 16)
    with pytest.raises(PortError, match="puts buffer 0 of the cache's layer 0 into new memory"):
        captured(ids(1, 4), cache=cache)


READS = {
    "tolist": (lambda t: t.tolist(), "reads values on the host"),
    "item": (lambda t: t.sum().item(), "_local_scalar_dense.*reads values on the host"),
    "bool": (lambda t: bool((t > 0).all()), "reads values on the host"),
    "mask": (lambda t: t[t > 0], "mask as index"),
    "nonzero": (lambda t: t.nonzero(), "nonzero.*shape depends on values"),
    "cpu": (lambda t: t.cpu(), "_to_copy.*reads values on the host"),
    "from the host": (lambda t: t + torch.ones(3).npu()[0], "copies values from the host"),
}


@pytest.mark.parametrize("read", READS)
def test_what_cannot_be_captured_says_which_operator_and_why(read: str) -> None:
    captured, (spoil, reason) = pair()[1], READS[read]
    right = captured.forward_step

    def step(input_ids: Tensor, pad: Tensor, cache: Any, first: bool) -> Tensor:
        spoil(input_ids)
        return right(input_ids, pad, cache, first)

    captured.forward_step = step
    compile_steps(captured, "captured")
    cache = captured.new_cache(1, 16)
    before = counts()
    with pytest.raises(PortError, match=f"cannot be captured: aten::.*{reason}"):
        captured(ids(1, 4), cache=cache)
    assert counts() == before, "nothing was captured, nothing ran instead"
    assert cache.slot.tolist() == [0], "the slot is as it was"
    run_eager(captured)
    captured.forward_step = right
    captured(ids(1, 4), cache=cache)  # the process goes on


def test_a_failure_in_the_capture_itself_names_the_operator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Were the look at the warm-up to miss it."""
    from dsv3_port.engine import capture

    monkeypatch.setattr(capture, "_meets", lambda *_: "")
    captured = pair()[1]
    right, stream = captured.forward_step, torch.npu.current_stream()

    def step(input_ids: Tensor, pad: Tensor, cache: Any, first: bool) -> Tensor:
        input_ids.sum().item()
        return right(input_ids, pad, cache, first)

    captured.forward_step = step
    compile_steps(captured, "captured")
    with pytest.raises(PortError, match="aten::_local_scalar_dense.*is refused: .*host waits"):
        captured(ids(1, 4), cache=captured.new_cache(1, 16))
    assert torch.npu.current_stream() == stream
    assert tape.tapes is not None and not tape.tapes.capturing()


def test_upstreams_forms_are_refused_before_anything_runs() -> None:
    with pytest.raises(PortError, match="expert loop.*growing cache"):
        compile_steps(short.load(PortPlan.upstream()), "captured")
    with pytest.raises(PortError, match="'compiled-captured' does not exist on device 'npu'"):
        compile_steps(short.load(FULL), "compiled-captured")


def test_the_text_is_the_same_and_captured_twice() -> None:
    eager, captured = pair()
    tokenizer, prompts = load_tokenizer(TINY), ["Once upon a time", "7 plus 5 is"]
    before = counts()
    texts = [generate(m, tokenizer, prompts, 12, pad_to=16) for m in (eager, captured)]
    assert [g.token_ids for g in texts[0]] == [g.token_ids for g in texts[1]]
    captures, replays = (b - a for a, b in zip(before, counts(), strict=True))
    assert (captures, replays) == (2, 2 + 11)  # two prompts, and 11 steps behind the first tokens


def test_prefill_may_stay_eager() -> None:
    captured = eager_prefill(pair()[1])
    before = counts()[0]
    cache = captured.new_cache(1, 16)
    for part in ids(1, 6).split([4, 1, 1], dim=1):
        captured(part, cache=cache)
    assert counts()[0] - before == 1 and made(captured) == "captured"


@pytest.mark.filterwarnings("ignore:other processes used")
def test_the_devices_own_clock_is_used_and_its_times_are_marked() -> None:
    """Events of torch.npu, which have the interface of torch.cuda's."""
    captured = eager_prefill(pair()[1])
    work = Workload({"step": captured}, "decode", batch=1, size=4)
    (record,) = work.measure("tiny", rounds=2, min_seconds=0.1, progress=False)
    assert (record.clock, record.mode, record.tier) == ("device", "captured", "host-npu")
    assert record.inner > 1 and min(record.samples) > 0


def test_a_prompt_in_pieces_is_two_graphs() -> None:
    """The remainder and the pieces; an eager model reads the filled part of the cache, a graph all."""
    eager, captured = pair()
    text, logits = ids(1, 14), []
    before = counts()
    for model in (eager, captured):
        cache = model.new_cache(1, 16)
        logits.append(model.prefill(text, None, cache, chunk=4)[:, -1].cpu())
        logits.append(model(ids(1, 1, 3), cache=cache)[:, -1].cpu())
    for a, b in zip(logits[:2], logits[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    captures, replays = (b - a for a, b in zip(before, counts(), strict=True))
    assert (captures, replays) == (3, 1 + 3 + 1)  # 2 tokens, 4 tokens three times, one step
