"""Real processes: what ranks hold and send, that wrong gathers are wrong, and that worlds are timed
side by side."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from dsv3_port import PortError, PortPlan, load_model
from dsv3_port.bench.records import YOURS
from dsv3_port.bench.worlds import PHASE, time_worlds, world_name
from dsv3_port.check.defects import sliced_mlp
from dsv3_port.check.equivalence import padding
from dsv3_port.check.rank_calls import tokens_of_rank
from dsv3_port.check.stages import feed
from dsv3_port.count.traffic import CountedParallel, count_traffic
from dsv3_port.course.slots.shard_weights import SOLUTION
from dsv3_port.course.written import Sent
from dsv3_port.course.yours import slots
from dsv3_port.engine.device import rank_device
from dsv3_port.engine.launch import run_ranks
from dsv3_port.parallel import SINGLE, TensorParallel, parts_side_by_side
from dsv3_port.paths import tiny
from dsv3_port.plots.ranks import step_split
from dsv3_port.weights.sharding import shard_checkpoint
from dsv3_port.weights.write import write_checkpoint
from tests.random_models import CONFIG, random_sources

PLAN = PortPlan.full()
IDS = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """World size -> the random model split for it; 0 -> the published form."""
    at = tmp_path_factory.mktemp("ranks")
    published = write_checkpoint(at / "published", CONFIG, random_sources().items())
    for world in (1, 2):
        shard_checkpoint(published, at / str(world), world, dtype="fp32")
    return {0: str(published), 1: str(at / "1"), 2: str(at / "2")}


GATHERS = {
    "right": parts_side_by_side,
    "reshape alone": lambda flat, world: flat.reshape(len(flat) // world, flat.shape[1], -1),
    "one part": lambda flat, world: flat.chunk(world)[dist.get_rank()],
}


def logits_of(place: TensorParallel, path: str, ids: torch.Tensor) -> torch.Tensor:
    """After padded prompts and each of four cached steps: [B, 5, V]."""
    model = load_model(path, PLAN, "cpu", "float32", place)
    return torch.cat([call()[:, -1:] for call in feed(model, ids, padding(ids, 4), 4)], 1)


def gathers_of_both(parallel: TensorParallel, path: str) -> dict[str, torch.Tensor]:
    """All gathers for two sequences, and the one that mixes rows for one sequence."""
    here = (parallel.rank, parallel.world_size, parallel.group)
    places = {name: TensorParallel(*here, arrange) for name, arrange in GATHERS.items()}
    found = {name: logits_of(place, path, IDS) for name, place in places.items()}
    return found | {"one sequence": logits_of(places["reshape alone"], path, IDS[:1])}


def test_two_ranks_with_right_and_wrong_gathers(folders):
    """The reshape alone is right for one sequence and wrong for two; a gather thrown away is never
    right."""
    want = logits_of(SINGLE, folders[1], IDS)
    assert want.shape == (2, 5, CONFIG.vocab_size)
    got, other = run_ranks(gathers_of_both, 2, folders[2])
    assert torch.equal(got["right"], other["right"])
    assert float((got["right"] - want).abs().max() / want.abs().max()) < 1e-5
    assert got["reshape alone"].shape == want.shape
    assert not torch.equal(got["reshape alone"].argmax(-1), want.argmax(-1))
    alone = logits_of(SINGLE, folders[1], IDS[:1])
    assert float((got["one sequence"] - alone).abs().max() / alone.abs().max()) < 1e-5
    assert got["one part"].shape[-1] == CONFIG.vocab_size // 2
    assert not torch.equal(got["one part"], other["one part"])


def sent_by(parallel: TensorParallel, path: str) -> list[list[tuple[str, int]]]:
    """Kind and bytes of the collectives of a prompt of five tokens and of a decode step, of two
    sequences."""
    counted = CountedParallel(parallel.rank, parallel.world_size, parallel.group)
    model = load_model(path, PLAN, "cpu", "float32", counted)
    cache, found = model.new_cache(2, 6), []
    for ids in (IDS[:, :5], IDS[:, 5:6]):
        model(ids.contiguous(), cache=cache)
        found.append([(c.kind, c.nbytes) for c in counted.log])
        counted.log.clear()
    return found


def test_what_ranks_send_is_what_is_counted_without_them(folders):
    assert sent_by(SINGLE, folders[1]) == [[], []]
    for found in run_ranks(sent_by, 2, folders[2]):
        for tokens, ran in zip((5, 1), found, strict=True):
            said = count_traffic(CONFIG, PLAN, 2, batch=2, tokens=tokens, dtype=torch.float32)
            assert [(c.kind, c.nbytes) for c in said] == ran


def test_worlds_are_timed_in_one_run(folders):
    times = time_worlds(
        {1: folders[0], 2: folders[0]},
        PLAN,
        batch=2,
        context=20,
        rounds=2,
        label="test",
        cut=Sent(SOLUTION, "cut", "<cut>"),
    )
    assert times.results.names == ["1 rank", "2 ranks", YOURS]
    assert {r.phase for r in times.results} == {PHASE}
    assert [len(r.again) for r in times.results] == [2, 0, 0]  # the noise floor's pair
    yours = times.worlds[YOURS]
    assert (
        yours.world_size == 2 and yours.parameter_bytes == times.worlds["2 ranks"].parameter_bytes
    )
    assert all(len(r.samples) == 2 and min(r.samples) > 0 for r in times.results)
    assert times.results.ratio("1 rank", "2 ranks").median > 0
    one, two = times.worlds["1 rank"], times.worlds["2 ranks"]
    assert one.collectives == [] and one.share == 0 and 0 < two.share < 1 and min(two.alone) > 0
    # more than half: norms and latent projections are whole on each; the latent row belongs to all
    assert one.parameter_bytes / 2 < two.parameter_bytes < one.parameter_bytes
    assert two.cache_bytes == one.cache_bytes
    assert len(two.collectives) == 2 * CONFIG.num_hidden_layers + 2
    assert one.difference == 0 and 0 < two.difference < 1e-5
    figure = step_split(times)
    assert "2 ranks" in figure.alt_text and len(figure.png()) > 3000


@pytest.mark.parametrize("slot_id", ["01.cut", "09.arrange"])
def test_a_wrong_function_is_not_timed_on_ranks(folders, slot_id):
    place = slots()[slot_id]
    wrong = next(iter(place.wrong.values()))
    sent = {place.name: Sent(wrong.source, place.name, "<wrong>")}
    with pytest.raises(PortError, match="yours: the logits or the chosen experts differ"):
        time_worlds({1: folders[0], 2: folders[0]}, PLAN, context=8, rounds=1, **sent)


def test_worlds_of_different_weights_are_not_timed(folders, tmp_path):
    other = write_checkpoint(tmp_path / "other", CONFIG, random_sources(seed=1).items())
    with pytest.raises(PortError, match="nothing was timed"):
        time_worlds({1: folders[1], 2: other}, PLAN, context=8, rounds=1)


def test_worlds_need_a_folder():
    with pytest.raises(PortError, match="world sizes"):
        time_worlds({})


def test_greedy_tokens_of_ranks_equal_those_of_one_model():
    folder = str(tiny())
    prompts = ["Once upon a time", "The"]
    want = tokens_of_rank(SINGLE, folder, PLAN, prompts, 16)
    assert all(got == want for got in run_ranks(tokens_of_rank, 2, folder, PLAN, prompts, 16))
    assert load_model(folder, device="cpu").config.vocab_size > max(map(max, want))


def test_slices_of_another_width_than_the_files_say_nothing():
    """WORLD_SIZE of the variable: 4 for 2 files loses half of the expert, 1 leaves a file empty."""
    generator = torch.Generator().manual_seed(2)
    x, gate, up = (torch.randn(n, 5, generator=generator) for n in (3, 8, 8))
    down = torch.randn(5, 8, generator=generator)
    want = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    made = {n: sliced_mlp(x, gate, up, down, 8 // n) for n in (2, 4, 1)}
    assert {n: rows for n, (_, rows) in made.items()} == {2: [4, 4], 4: [2, 2], 1: [8, 0]}
    assert torch.allclose(made[2][0], want, atol=1e-5)
    assert not torch.allclose(made[4][0], want, atol=0.1)


def test_names_and_places():
    assert world_name(1) == "1 rank" and world_name(4) == "4 ranks"
    assert rank_device("cpu", 64) == "cpu"
