"""`shard --quant w8a8`: what is written in both formats, read back, converted, interrupted, refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dsv3_port import DeepseekV3Config, PortError, PortPlan, load_model
from dsv3_port.parallel import TensorParallel
from dsv3_port.weights.checkpoint import Checkpoint
from dsv3_port.weights.int8_formats import ASCEND, COMPRESSED, DESCRIPTION, FORMATS
from dsv3_port.weights.sharding import (
    is_sharded,
    rank_folder,
    shard_checkpoint,
    verify_shards,
)
from dsv3_port.weights.sharding import source as stream
from dsv3_port.weights.synthetic import synthetic_checkpoint
from tests import int8_definition as definition
from tests.oracle import plain_tensors
from tests.weights.spoil import edit_json

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
FULL = PortPlan.full().replace(quant="w8a8")
UPSTREAM = PortPlan.upstream().replace(quant="w8a8")
IDS = torch.randint(3, 900, (2, 12), generator=torch.Generator().manual_seed(1))
GATE = "model.layers.1.mlp.experts.3.gate_proj.weight"
RUN = (
    "import sys; from dsv3_port import PortPlan; from dsv3_port.weights.sharding import shard_checkpoint; "
    "print('begin', flush=True); shard_checkpoint(sys.argv[1], sys.argv[2], 2, jobs=2, commit_bytes=1 << 16, "
    "plan=PortPlan.full().replace(quant='w8a8'), quant_format=sys.argv[3])"
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def whole(folder: Path, form: str, source: Path = TINY) -> Path:
    """A checkpoint of the format under the published names: the folder of one rank of the unported
    model."""
    shard_checkpoint(source, folder, 1, plan=UPSTREAM, quant_format=form)
    return folder / rank_folder(0, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("whole")
    return {form: whole(place / form, form) for form in FORMATS}


@pytest.fixture
def spoilt(made, tmp_path):
    """A copy of a whole checkpoint; `spoilt(form, change)` lets `change` write its tensors anew."""

    def copy(form: str, change: Any = None) -> Path:
        target = tmp_path / form
        target.mkdir()
        for file in made[form].iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        if change is not None:
            (file,) = target.glob("*.safetensors")
            tensors = load_file(file)
            change(tensors)
            save_file(tensors, file, metadata={"format": "pt"})
            index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, file.name)}
            (target / "model.safetensors.index.json").write_text(json.dumps(index))
        return target

    return copy


@pytest.mark.parametrize("form", FORMATS)
def test_a_whole_checkpoint_holds_the_definitions_codes(form, made) -> None:
    stored: dict[str, torch.Tensor] = {}
    for file in made[form].glob("*.safetensors"):
        stored |= load_file(file)
    tensors = plain_tensors(TINY)
    checkpoint = Checkpoint.open(made[form])
    eight = [n for n in checkpoint.names if checkpoint.stored_dtype(n) == torch.int8]
    assert len(eight) == len([n for n in stored if n.endswith("_scale")]) > 50
    for name in eight:
        codes, scale = definition.weight(tensors[name].numpy())
        assert (stored[name].numpy() == codes).all()
        assert (stored[name + "_scale"].numpy() == scale).all()
        assert ((name + "_offset" in stored) == (form == ASCEND)) and not (
            form == ASCEND and stored[name + "_offset"].any()
        )
    for name in set(checkpoint.names) - set(eight):
        kept = tensors[name].float()
        assert torch.equal(stored[name].float(), kept.to(stored[name].dtype).float()), name


def test_what_the_formats_say(made) -> None:
    said = json.loads((made[COMPRESSED] / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "compressed-tensors" and said["format"] == "int-quantized"
    (group,) = said["config_groups"].values()
    assert group["weights"]["strategy"] == "channel"
    assert group["input_activations"]["strategy"] == "token"
    ignored = said["ignore"]
    assert "lm_head" in ignored and "model.layers.1.mlp.gate" in ignored
    assert all(f"model.layers.{n}.self_attn.kv_b_proj" in ignored for n in range(4))
    assert len(ignored) == 1 + 3 + 4, "what is int8 or no Linear is not listed"
    said = json.loads((made[ASCEND] / DESCRIPTION).read_text())
    assert "quantization_config" not in json.loads((made[ASCEND] / "config.json").read_text())
    (file,) = made[ASCEND].glob("*.safetensors")
    with safe_open(file, framework="pt") as values:
        names = set(values.keys())
    words = {"model_quant_type", "version", "group_size", "metadata", "optional"}
    assert set(said) == names | words and said["model_quant_type"] == "W8A8_DYNAMIC"
    for end in ("", "_scale", "_offset"):
        assert said[GATE + end] == "W8A8_DYNAMIC"
    assert said["lm_head.weight"] == "FLOAT"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("world", [1, 2])
def test_every_way_to_a_rank_gives_the_same_parameters(form, world, made, tmp_path) -> None:
    """The published FP8 quantised while it is loaded; split; a whole checkpoint of int8 loaded; that
    split again."""
    shard_checkpoint(TINY, tmp_path / "a", world, plan=FULL, quant_format=form)
    other = next(f for f in FORMATS if f != form)
    shard_checkpoint(made[other], tmp_path / "b", world, plan=FULL, quant_format=form)
    assert verify_shards(tmp_path / "a") == verify_shards(tmp_path / "b")
    for rank in range(world):
        place = TensorParallel(rank, world)
        want = load_model(TINY, FULL, "cpu", "bfloat16", place).state_dict()
        for folder in (tmp_path / "a", made[form], tmp_path / "b"):
            found = load_model(folder, FULL, "cpu", "bfloat16", place).state_dict()
            assert found.keys() == want.keys()
            assert all(
                found[n].dtype == w.dtype and torch.equal(found[n], w) for n, w in want.items()
            )


def test_from_one_format_to_the_other_and_back(made, tmp_path) -> None:
    back = whole(tmp_path / "b", COMPRESSED, whole(tmp_path / "a", ASCEND, made[COMPRESSED]))
    for name in ("config.json", "model-00001-of-00001.safetensors"):
        assert (back / name).read_bytes() == (made[COMPRESSED] / name).read_bytes()


def test_a_float_plan_takes_the_values_that_the_codes_stand_for(made) -> None:
    model = load_model(made[ASCEND], PortPlan.upstream(), "cpu", "float32")
    codes, scale = Checkpoint.open(made[ASCEND]).read_int8(GATE)
    found = model.model.layers[1].mlp.experts[3].gate_proj.weight
    assert torch.equal(found, codes.float() * scale)


@pytest.mark.parametrize("form", FORMATS)
def test_killed_and_gone_on_byte_for_byte(form, tmp_path) -> None:
    config = DeepseekV3Config.preset("small").replace(num_hidden_layers=3, n_routed_experts=64)
    source = synthetic_checkpoint(config, cache_dir=tmp_path / "source")
    given: dict[str, Any] = {"plan": FULL, "quant_format": form}
    shard_checkpoint(source, tmp_path / "whole", 2, **given)
    out = tmp_path / "out"
    journals = [out / ".shard" / f"{rank_folder(r, 2)}.jsonl" for r in (0, 1)]
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(source), str(out), form],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None and run.stdout.readline() == "begin\n"
    deadline = time.monotonic() + 60
    while run.poll() is None and time.monotonic() < deadline:
        if sum(j.read_bytes().count(b"\n") for j in journals if j.exists()) > 40:
            break
        time.sleep(0.001)
    run.kill()
    assert run.wait() == -signal.SIGKILL, "it was done before it was killed"
    run.stdout.close()
    with pytest.raises(PortError, match="not finished|missing"):
        load_model(out, FULL, "cpu", parallel=TensorParallel(0, 2))
    report = shard_checkpoint(source, out, 2, verify=True, **given)
    assert 0 < report.tensors_resumed < report.tensors_read
    assert contents(out) == contents(tmp_path / "whole")


def test_an_unfinished_split_of_another_form_is_refused(tmp_path, monkeypatch) -> None:
    done, real = iter(range(10**9)), stream.split_source

    def split(*args):
        if next(done) >= 30:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr("dsv3_port.weights.sharding.workers.split_source", split)
    with pytest.raises(KeyboardInterrupt):
        shard_checkpoint(TINY, tmp_path, 2, plan=FULL, jobs=1)
    monkeypatch.undo()
    for given in ({"plan": FULL, "quant_format": ASCEND}, {}):
        with pytest.raises(PortError, match="unfinished split is here that differs in layout"):
            shard_checkpoint(TINY, tmp_path, 2, **given)
    assert shard_checkpoint(TINY, tmp_path, 2, plan=FULL).tensors_resumed == 30


@pytest.mark.parametrize("form", FORMATS)
def test_a_rank_whose_format_does_not_cover_a_tensor(form, tmp_path) -> None:
    """The same bytes in number: the manifest knows the file's size, not what it says."""
    shard_checkpoint(TINY, tmp_path, 1, plan=FULL, quant_format=form)
    rank = tmp_path / rank_folder(0, 1)
    file = rank / (DESCRIPTION if form == ASCEND else "config.json")
    old, new = {
        ASCEND: (
            '"model.layers.1.mlp.experts.group_w2":',
            '"model.layers.1.mlp.experts.group_wX":',
        ),
        COMPRESSED: ('"model.layers.2.mlp.gate"', '"model.layers.9.mlp.gate"'),
    }[form]
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    wanted = {
        ASCEND: "does not cover model.layers.1.mlp.experts.group_w2:",
        COMPRESSED: "says that model.layers.2.mlp.gate.weight is W8A8_DYNAMIC, and it is FLOAT",
    }[form]
    with pytest.raises(PortError, match=wanted):
        load_model(tmp_path, FULL, "cpu")
    file.write_text(text + " ")
    with pytest.raises(PortError, match=f"{file.name}: .* bytes, the manifest says"):
        load_model(tmp_path, FULL, "cpu")


def drop(name: str) -> Any:
    return lambda tensors: tensors.pop(name)


def change(name: str, by: Any) -> Any:
    return lambda tensors: tensors.update({name: by(tensors[name])})


def at(row: int, value: float) -> Any:
    def by(scale: torch.Tensor) -> torch.Tensor:
        scale = scale.clone()
        scale[row] = value
        return scale

    return by


WRONG_TENSORS = {
    "no scale": (
        drop(GATE + "_scale"),
        "gate_proj.weight is int8 and its .*weight_scale is missing",
    ),
    "NaN": (
        change(GATE + "_scale", at(5, float("nan"))),
        r"weight_scale holds .*first \[5, 0\] = nan",
    ),
    "zero": (
        change(GATE + "_scale", at(0, 0.0)),
        r"experts.3.gate_proj.weight: weight_scale holds .*0",
    ),
    "negative": (change(GATE + "_scale", at(0, -1.0)), "weight_scale holds a negative"),
    "scale [N]": (
        change(GATE + "_scale", torch.flatten),
        r"weight_scale is F32 \[64\].*F32 \[64, 1\]",
    ),
    "scale of inputs": (
        change(GATE + "_scale", lambda s: torch.ones(256, 1)),
        r"gate_proj.weight_scale is F32 \[256, 1\]; a channel of \[64, 256\] has one",
    ),
    "scale BF16": (change(GATE + "_scale", torch.Tensor.bfloat16), "weight_scale is BF16"),
    "weight BF16": (
        change(GATE, torch.Tensor.bfloat16),
        "stored as BF16, and .* says W8A8_DYNAMIC",
    ),
    "zeros": (change(GATE, torch.zeros_like), "gate_proj.weight: all values are zero"),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_wrong_tensors_by_loading_and_by_splitting(name, form, spoilt, tmp_path) -> None:
    how, message = WRONG_TENSORS[name]
    folder = spoilt(form, how)
    with pytest.raises(PortError, match=message):
        load_model(folder, UPSTREAM, "cpu")
    with pytest.raises(PortError, match=message):
        shard_checkpoint(folder, tmp_path / "out", 2, plan=FULL)


def test_an_offset_that_is_not_zero(spoilt, tmp_path) -> None:
    folder = spoilt(ASCEND, change(GATE + "_offset", at(3, 2.0)))
    for call in (
        lambda: load_model(folder, UPSTREAM, "cpu"),
        lambda: shard_checkpoint(folder, tmp_path / "out", 1, plan=FULL),
    ):
        with pytest.raises(
            PortError, match=r"gate_proj.weight: weight_offset is not zero at 3 \(2\)"
        ):
            call()


def test_a_description_that_is_wrong(spoilt) -> None:
    folder = spoilt(ASCEND)
    file = folder / DESCRIPTION
    right = json.loads(file.read_text())

    def refused(message: str, plan: PortPlan = UPSTREAM, **changes: Any) -> None:
        found = {k: v for k, v in (right | changes).items() if v is not None}
        file.write_text(json.dumps(found))
        with pytest.raises(PortError, match=message):
            load_model(folder, plan, "cpu")

    for end in ("", "_scale"):
        refused(f"{DESCRIPTION}: does not cover {GATE}{end}:", **{GATE + end: None})
    refused(f"{GATE} is 'W4A8_DYNAMIC'; FLOAT and W8A8_DYNAMIC are read", **{GATE: "W4A8_DYNAMIC"})
    refused(f"{GATE} is 'W8A8', whose activations have fixed scales", **{GATE: "W8A8"})
    refused("weight is W8A8_DYNAMIC and .*_scale FLOAT; all tensors", **{GATE + "_scale": "FLOAT"})
    refused("is stored as I8, and .* says FLOAT", **{GATE: "FLOAT"})
    refused("lm_head.weight is stored as BF16, and .*W8A8", **{"lm_head.weight": "W8A8_DYNAMIC"})
    file.write_text("[1]")
    with pytest.raises(PortError, match="must map tensor names to types"):
        Checkpoint.open(folder)
    file.unlink()
    with pytest.raises(PortError, match="Ascend's W8A8 format"):
        Checkpoint.open(folder)


def test_one_type_a_fused_layer(spoilt) -> None:
    """gate_proj of one expert is FLOAT, all others are int8; then all of a layer."""

    def to_float(*names: str) -> Any:
        def how(tensors: dict[str, torch.Tensor]) -> None:
            for name in names:
                codes, scale = tensors[name], tensors.pop(name + "_scale")
                tensors.pop(name + "_offset")
                tensors[name] = (codes.float() * scale).bfloat16()

        return how

    folder = spoilt(ASCEND, to_float(GATE))
    said = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(said | {GATE: "FLOAT"}))
    with pytest.raises(
        PortError,
        match=rf"{GATE} is FLOAT, and model.layers.1.mlp.experts.0.gate_proj.weight W8A8_DYNAMIC: a fused "
        "layer has one type; model.layers.1.mlp.experts.group_w1_w3 of the plan is int8",
    ):
        load_model(folder, FULL, "cpu")
    with pytest.raises(PortError, match=f"{GATE} is FLOAT; .*gate_proj.weight of the plan is int8"):
        load_model(folder, UPSTREAM, "cpu")
    load_model(folder, PortPlan.full(), "cpu")  # float: each has its value


def test_configs_that_are_not_w8a8(spoilt) -> None:
    folder = spoilt(COMPRESSED)
    right = json.loads((folder / "config.json").read_text())["quantization_config"]

    def refused(message: str, **changes: Any) -> None:
        edit_json(folder / "config.json", quantization_config=right | changes)
        with pytest.raises(PortError, match=message):
            Checkpoint.open(folder)

    group = right["config_groups"]["group_0"]

    def grouped(kind: str, **changes: Any) -> dict[str, Any]:
        return {"group_0": group | {kind: group[kind] | changes}}

    refused("format is 'pack-quantized'; 'int-quantized' is read", format="pack-quantized")
    refused("kv_cache_scheme is .*None is read", kv_cache_scheme={"num_bits": 8})
    refused(
        "group_0.weights.num_bits is 4; 8 is read", config_groups=grouped("weights", num_bits=4)
    )
    refused("weights.strategy is 'tensor'", config_groups=grouped("weights", strategy="tensor"))
    refused(
        "input_activations.dynamic is False; True is read",
        config_groups=grouped("input_activations", dynamic=False),
    )
    refused("config_groups is .*one group is read", config_groups={"a": group, "b": group})
    refused("ignore is .*not a list of modules", ignore=[7])
    refused("ignore has 're:\\(', no pattern", ignore=["re:("])
    refused(
        "lm_head.weight is stored as BF16, and config.json says W8A8_DYNAMIC",
        ignore=[m for m in right["ignore"] if m != "lm_head"],
    )
    ignore = ["re:.*kv_b_proj$", "re:.*mlp[.]gate$", "lm_head"]
    edit_json(folder / "config.json", quantization_config=right | {"ignore": ignore})
    load_model(folder, UPSTREAM, "cpu")


def test_two_formats_at_once(spoilt, made) -> None:
    folder = spoilt(COMPRESSED)
    (folder / DESCRIPTION).write_bytes((made[ASCEND] / DESCRIPTION).read_bytes())
    with pytest.raises(PortError, match="which of the two formats is it"):
        Checkpoint.open(folder)


def test_the_vendors_own_name_of_the_index(made, spoilt) -> None:
    folder = spoilt(ASCEND)
    index = folder / "model.safetensors.index.json"
    index.rename(folder / "quant_model_weight_w8a8_dynamic.safetensors.index.json")
    assert Checkpoint.open(folder).names == Checkpoint.open(made[ASCEND]).names


def test_int8_without_a_word_about_it(spoilt) -> None:
    folder = spoilt(COMPRESSED, lambda t: [t.pop(n) for n in list(t) if n.endswith("_scale")])
    edit_json(folder / "config.json", quantization_config=None)
    with pytest.raises(PortError, match="stored as I8, and neither config.json"):
        Checkpoint.open(folder)


def test_arguments_and_folders_that_do_not_fit(tmp_path) -> None:
    for message, given in (
        ("--quant-format ascend is of int8 matrices: add --quant w8a8", {"quant_format": ASCEND}),
        ("--quant-format 'gptq' is not one of", {"plan": FULL, "quant_format": "gptq"}),
        ("int8 has neither NaN nor infinity", {"plan": FULL, "allow_nonfinite": True}),
    ):
        with pytest.raises(PortError, match=message):
            shard_checkpoint(TINY, tmp_path / "x", 1, **given)
    report = shard_checkpoint(TINY, tmp_path / "a", 1, plan=FULL)
    assert "(bf16, int8 as compressed-tensors)" in report.summary()
    shard_checkpoint(TINY, tmp_path / "b", 1)
    with pytest.raises(PortError, match="was split to int8 matrices.*--plan"):
        load_model(tmp_path / "a", PortPlan.full(), "cpu")
    with pytest.raises(PortError, match="was split without int8 matrices"):
        load_model(tmp_path / "b", FULL, "cpu")
    assert is_sharded(tmp_path / "a") and not is_sharded(tmp_path / "a" / rank_folder(0, 1))


def test_bytes_of_a_rank(tmp_path) -> None:
    """Codes are half of bfloat16; the scales are four bytes an output."""
    eight = shard_checkpoint(TINY, tmp_path / "a", 1, plan=FULL, dry_run=True).bytes_per_rank
    sixteen = shard_checkpoint(TINY, tmp_path / "b", 1, dry_run=True).bytes_per_rank
    config = DeepseekV3Config.from_pretrained(TINY)
    from dsv3_port.weights.layout import targets

    found = list(targets(config, FULL))
    codes = sum(torch.Size(t.shape).numel() for t in found if t.int8)
    scales = sum(torch.Size(t.shape).numel() for t in found if t.pieces[0].part == "scale")
    assert eight == sixteen - codes + 4 * scales
