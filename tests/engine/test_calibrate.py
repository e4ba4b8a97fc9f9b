"""Scales of an int8 cache: what they are, the file they lie in, and the command that makes it, on one rank
and on two."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dsv3_port import PortError, PortPlan, generate, load_model, load_tokenizer
from dsv3_port.cli.main import main
from dsv3_port.engine.calibrate import calibrate, calibrate_rank
from dsv3_port.engine.job import Job, run_job
from dsv3_port.engine.settings import Settings
from dsv3_port.model.c8 import int8_attentions
from dsv3_port.weights.kv_scales import FILE, made_of, read_kv_scales, write_kv_scales
from dsv3_port.weights.sharding import shard_checkpoint
from tests.random_models import random_model

TINY = Path(__file__).parents[2] / "data" / "tiny-dsv3"
INT8 = PortPlan.production().replace(quant="w8a8")
C8 = INT8.replace(mla_prolog=True, kv_cache_dtype="int8")
TEXTS = ["Once upon a time", "7 plus 5 is"]


def test_a_scale_is_the_largest_latent_by_127() -> None:
    """From what the projection gives, by numpy's own norm; of every row alone, so of no padding."""
    model, rows = random_model(PortPlan.full()), [[3, 4, 5, 60], [7], list(range(9, 40))]
    found: dict[int, list[np.ndarray]] = {}
    for number, layer in enumerate(model.model.layers):
        keep = found.setdefault(number, [])
        layer.self_attn.kv_a_proj_with_mqa.register_forward_hook(
            lambda m, a, y, keep=keep: keep.append(y[..., :16].double().numpy())
        )
    scales = calibrate(model, rows)
    for number, layer in enumerate(model.model.layers):
        gamma = layer.self_attn.kv_a_layernorm.weight.double().numpy()
        assert sum(x.shape[1] for x in found[number]) == sum(map(len, rows))
        normed = [x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * gamma for x in found[number]]
        want = max(float(np.abs(x).max()) for x in normed) / 127
        assert scales[f"model.layers.{number}.self_attn"] == pytest.approx(want, rel=1e-6)
    alone = [calibrate(model, [row]) for row in rows]
    assert scales == {n: max(one[n] for one in alone) for n in scales}
    assert not any("norm" in vars(m) for m in model.modules())
    assert calibrate(model, torch.tensor(rows[:1])) == alone[0]


def test_the_mtp_layer_has_one_too() -> None:
    model = load_model(TINY, INT8, "cpu", "float32")
    scales = calibrate(model, TEXTS, load_tokenizer(TINY))
    assert list(scales) == [f"model.layers.{n}.self_attn" for n in range(5)]
    without = load_model(TINY, INT8.replace(mtp=False), "cpu", "float32")
    assert calibrate(without, TEXTS, load_tokenizer(TINY)) == dict(list(scales.items())[:4])


def test_texts_that_cannot_be_taken() -> None:
    model = random_model(PortPlan.full())
    for prompts, words in (
        ([], "no prompt was given"),
        (["a"], "need a tokenizer"),
        ([[1], []], r"prompt 2: ids in 0\.\.95"),
        ([[96]], "prompt 1: ids in 0"),
        ([[1] * 257], "prompt 1 has 257 tokens, and the model 256 positions"),
    ):
        with pytest.raises(PortError, match=words):
            calibrate(model, prompts)
    model.model.layers[1].self_attn.kv_a_layernorm.weight.data.fill_(0)
    with pytest.raises(PortError, match=r"layers\.1\.self_attn: the largest latent .* is 0"):
        calibrate(model, [[3]])


# ---- the file ------------------------------------------------------------------------------------


def test_the_file(tmp_path) -> None:
    scales = {"model.layers.0.self_attn": 0.5, "model.layers.1.self_attn": 0.1}
    write_kv_scales(tmp_path, scales, {"tokens": "7"})
    assert [f.name for f in tmp_path.iterdir()] == [FILE]
    assert read_kv_scales(tmp_path) == pytest.approx(scales) and made_of(tmp_path)["tokens"] == "7"
    write_kv_scales(tmp_path, dict.fromkeys(scales, 2.0), {"tokens": "9"})
    assert set(read_kv_scales(tmp_path).values()) == {2.0}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (
            {"lm_head.weight": torch.ones(1)},
            r"lm_head\.weight is F32 \[1\]; it must be a \.kv_scale",
        ),
        ({"a.kv_scale": torch.ones(2)}, r"a\.kv_scale is F32 \[2\]"),
        ({"a.kv_scale": torch.ones(1).half()}, r"a\.kv_scale is F16"),
        ({"a.kv_scale": torch.tensor([0.0])}, "is 0; it must be a positive number"),
        ({"a.kv_scale": torch.tensor([math.nan])}, "is nan"),
        ({"a.kv_scale": torch.tensor([-1.0])}, "is -1"),
    ],
)
def test_files_that_hold_something_else(tmp_path, tensors, words) -> None:
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(PortError, match=f"{FILE}: .*{words}"):
        read_kv_scales(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-1])
    with pytest.raises(PortError, match=f"{FILE}: .*truncated|{FILE}: not readable"):
        read_kv_scales(tmp_path)


def test_a_folder_without_it_is_refused_before_any_weight_is_read(tmp_path) -> None:
    with pytest.raises(PortError, match=f"{FILE}: no such file.*dsv3-port calibrate --model-dir"):
        load_model(TINY, C8, "cpu")
    settings = Settings.from_env_and_flags({"model_dir": str(TINY)}, {})
    with pytest.raises(PortError, match=f"{FILE}: no such file"):
        run_job(Job(settings, ("A",), C8, "cpu"))


# ---- the command ---------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys) -> None:
    """And `infer` with what it wrote: scales that the library finds too."""
    folder, prompts, out = tmp_path / "model", tmp_path / "texts.json", tmp_path / "out.json"
    shutil.copytree(TINY, folder)
    prompts.write_text(json.dumps(TEXTS))
    words = ["--model-dir", str(folder), "--device", "cpu"]
    assert main(["calibrate", *words, "--prompts", str(prompts)]) == 0
    assert "5 scales from 0.0" in (said := capsys.readouterr().out) and FILE in said
    model = load_model(folder, C8, "cpu")
    want = calibrate(load_model(folder, INT8, "cpu"), TEXTS, load_tokenizer(folder))
    assert read_kv_scales(folder) == pytest.approx(want, rel=1e-7)
    kept = {n: float(a.kv_scale) for n, a in int8_attentions(model).items()}
    assert kept == read_kv_scales(folder)
    about = made_of(folder)
    assert (about["prompts"], about["quant"], about["dtype"]) == ("2", "w8a8", "float32")
    plan = ["--plan", "production+w8a8+mla_prolog+c8", "--json", str(out)]
    assert main(["infer", *words, *plan, "--prompt", TEXTS[0], "--max-new-tokens", "8"]) == 0
    text = json.loads(out.read_text())["generations"][0]["text"]
    plan[1] = "production+w8a8"
    assert main(["infer", *words, *plan, "--prompt", TEXTS[0], "--max-new-tokens", "8"]) == 0
    assert text == json.loads(out.read_text())["generations"][0]["text"]
    (folder / FILE).unlink()
    plan[1] = "production+w8a8+mla_prolog+c8"
    assert main(["infer", *words, *plan, "--prompt", "A"]) == 2
    assert "dsv3-port calibrate" in capsys.readouterr().err


def test_over_two_ranks(tmp_path) -> None:
    """From a split folder; the file lies beside the ranks' folders, and each rank reads it."""
    folder = tmp_path / "split"
    shard_checkpoint(TINY, folder, 2, plan=INT8)
    flags = {"model_dir": str(folder), "max_new_tokens": 6, "job_timeout": 60}
    job = Job(Settings.from_env_and_flags(flags, {}), tuple(TEXTS), INT8, "cpu")
    scales, about = run_job(job, calibrate_rank)
    alone, tokenizer = load_model(TINY, INT8, "cpu"), load_tokenizer(TINY)
    one = calibrate(alone, TEXTS, tokenizer)
    assert scales == pytest.approx(one, rel=0.02) and about["tokens"].isdecimal()
    write_kv_scales(folder, scales, about)
    report = run_job(Job(Settings.from_env_and_flags(flags, {}), tuple(TEXTS), C8, "cpu"))
    want = generate(alone, tokenizer, TEXTS, 6)
    assert [g.text for g in report.generations] == [g.text for g in want]
    assert len(report.ranks) == 2 and report.ranks[0].cache % (128 * 5 * (4 * 64 + 512)) == 0
