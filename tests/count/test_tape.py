"""A tape keeps operators and addresses: right as long as inputs are copied, stale or refused where
they are not."""

from __future__ import annotations

import pytest
import torch

from dsv3_port.count.operators import count_ops
from dsv3_port.count.tape import Tape, taped
from dsv3_port.engine.graph import run_eager
from dsv3_port.errors import PortError
from dsv3_port.plan import PortPlan

from ..random_models import CONFIG, random_model

PLANS = {
    "full": PortPlan.full(),
    "routing in torch": PortPlan.full().replace(npu_routing_kernel=False),
    "expanded": PortPlan.full().minus("mla_low_rank"),
    "unfused": PortPlan.full().minus("rope_once", "add_rms_norm"),
}
READS = {
    "item": lambda x: x * x.sum().item(),
    "int": lambda x: x[: int(x.max())],
    "tolist": lambda x: x.tolist(),
    "if": lambda x: x if bool((x > 0).any()) else -x,
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.max().cpu(),
}


def affine(x):
    y = x * 2 + 1
    return y.relu().sum(-1, keepdim=True) + torch.arange(x.shape[0]).unsqueeze(1)


def decode(model, batch=2, steps=6):
    """Logits of a prompt's cached steps, each a copy, and the cache."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(CONFIG.vocab_size, (batch, 5 + steps), generator=generator)
    cache = model.new_cache(batch, 16)
    model(ids[:, :5], cache=cache)
    return [model(ids[:, 5 + i : 6 + i], cache=cache).clone() for i in range(steps)], cache


def test_replay_follows_its_inputs():
    tape = Tape.capture(affine, torch.zeros(2, 3))
    for seed in range(3):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(tape.replay(x), affine(x))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("batch", [1, 2])
def test_decode_step_replays_as_eager(name, batch):
    model = random_model(PLANS[name])
    eager, before = decode(model, batch)
    tapes = taped(model)
    replayed, after = decode(model, batch)
    assert len(tapes) == 1 and all(torch.equal(a, b) for a, b in zip(eager, replayed, strict=True))
    assert torch.equal(before.slot, after.slot) and after.length == before.length
    for old, new in zip(before.buffers, after.buffers, strict=True):
        assert torch.equal(old[0], new[0])


def test_a_paged_step_is_recorded_with_its_lengths_in_a_tensor():
    """Lengths that are numbers of the host are those of the recording for ever."""
    model = random_model(PortPlan.upto("paged_cache"))
    eager, _ = decode(model)
    for on_device in (True, False):
        model.device_lengths = on_device
        tapes = taped(model)
        replayed, _ = decode(model)
        assert len(tapes) == 1 and torch.allclose(eager[0], replayed[0], atol=1e-5)
        assert torch.allclose(eager[-1], replayed[-1], atol=1e-5) == on_device
        names = [launch.name for launch in tapes[0].launches]
        assert names.count("paged_attention") == CONFIG.num_hidden_layers
        run_eager(model)


def test_run_eager_takes_the_tapes_off():
    model = random_model(PortPlan.full())
    tapes = taped(model)
    run_eager(model)
    decode(model)
    assert not tapes


def test_records_what_the_census_counts():
    model = random_model(PortPlan.full())
    tapes = taped(model)
    _, cache = decode(model, batch=1, steps=1)
    run_eager(model)
    counted = count_ops(lambda: model(torch.zeros(1, 1, dtype=torch.int64), cache=cache))
    kept = sum(
        1 for launch in tapes[0].launches if launch.name.startswith(("npu_", "scatter_update"))
    )
    assert kept == sum(n for op, n in counted.items() if op.startswith(("npu_", "scatter_update")))
    assert abs(len(tapes[0].launches) - sum(counted.values())) <= 2
    assert tapes[0].nbytes > 0


def test_new_cache_new_tape():
    model = random_model(PortPlan.full())
    tapes = taped(model)
    decode(model), decode(model)
    assert len(tapes) == 2


def test_rebinding_an_input_is_stale():
    x = torch.ones(2, 3)
    tape = Tape.capture(affine, x)
    first = tape.replay(x).clone()
    x = torch.full((2, 3), 5.0)  # the name points elsewhere; the tape still reads its own buffer
    assert torch.equal(tape.run(), first) and not torch.equal(first, affine(x))


def test_output_is_overwritten_by_the_next_replay():
    tape = Tape.capture(affine, torch.zeros(1, 3))
    kept = tape.replay(torch.ones(1, 3))
    copy = kept.clone()
    tape.replay(torch.full((1, 3), 9.0))
    assert not torch.equal(kept, copy)


def test_logits_of_taped_steps_share_one_place_unless_cloned():
    model = random_model(PortPlan.full())
    ids = torch.zeros(1, 8, dtype=torch.int64)
    for clone, places in ((False, 1), (True, 3)):
        taped(model, clone_output=clone)
        cache = model.new_cache(1, 16)
        rows = [model(part, cache=cache) for part in ids.split([5, 1, 1, 1], dim=1)][1:]
        assert len({r.data_ptr() for r in rows}) == places


def test_growing_cache_is_captured_and_wrong():
    model = random_model(PortPlan.full().minus("fixed_kv_cache"))
    eager, _ = decode(model)
    taped(model)
    replayed, _ = decode(model)
    assert torch.equal(eager[0], replayed[0]) and not torch.allclose(eager[-1], replayed[-1])


@pytest.mark.parametrize("kind", READS)
def test_host_reads_are_refused(kind):
    with pytest.raises(PortError, match="while the step is captured"):
        Tape.capture(READS[kind], torch.ones(2, 3))


def test_shapes_that_depend_on_values_are_refused():
    with pytest.raises(PortError, match="aten::index"):
        Tape.capture(lambda x: x[x > 0.5], torch.ones(4))
    with pytest.raises(PortError, match="tolist"):
        model = random_model(PortPlan.full().minus("gmm_routing"))
        taped(model)
        decode(model)


def test_another_shape_is_refused():
    tape = Tape.capture(affine, torch.zeros(2, 3))
    with pytest.raises(PortError, match=r"captured for \[2, 3\].*needs a capture of its own"):
        tape.replay(torch.zeros(3, 3))
    with pytest.raises(PortError, match="float64"):
        tape.replay(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(PortError, match="1 inputs"):
        tape.replay()


def test_host_numbers_are_frozen():
    state = {"length": 1}
    tape = Tape.capture(lambda x: x + state["length"], torch.zeros(2))
    state["length"] = 7
    assert torch.equal(tape.replay(torch.zeros(2)), torch.ones(2))
