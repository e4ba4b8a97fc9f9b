"""generation_config.json: read as transformers reads it, overridden by flags, refused by name."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import GenerationConfig as Theirs

from dsv3_port import PortError, generate, load_model, load_tokenizer
from dsv3_port.cli import main
from dsv3_port.engine.generation_config import GenerationConfig
from dsv3_port.engine.sampler import Sampler, Sampling
from dsv3_port.engine.tokenizer import encode
from dsv3_port.paths import tiny
from tests.oracle import hf_model
from tests.weights.spoil import copy, edit_json

PROMPT = "Once upon a time"


def written(folder, values):
    """A folder with this generation_config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "generation_config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def hf():
    return hf_model(tiny())


@pytest.mark.parametrize(
    "values",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95},  # DeepSeek-V3's own
        {"do_sample": True, "top_k": 0, "top_p": 0.5},
        {"do_sample": True, "temperature": 2.0, "top_k": 7, "top_p": 1.0},
        {"do_sample": True, "top_k": 10**9, "top_p": 0.0},
    ],
)
def test_chances_are_those_of_transformers(values, hf, tmp_path):
    """generate() of transformers on the same folder, up to the draw."""
    folder = written(tmp_path / "m", values)
    theirs = Theirs.from_pretrained(folder)
    theirs.update(**{k: v for k, v in theirs._get_default_generation_params().items()
                     if getattr(theirs, k, None) is None})  # fmt: skip
    logits = 4 * torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    warpers = hf._get_logits_processor(theirs, input_ids_seq_length=4)
    want = warpers(torch.ones(3, 4, dtype=torch.int64), logits)
    ours = GenerationConfig.from_pretrained(folder).sampling()
    assert torch.equal(ours.kept(logits / ours.temperature), want)


def test_text_ends_where_transformers_ends_it(hf, tmp_path):
    """A list of ids; config.json's own and the tokenizer's no longer count."""
    m = copy(tmp_path / "m")
    tokenizer = load_tokenizer(m)
    model = load_model(m, device="cpu", dtype="float32")
    (whole,) = generate(model, tokenizer, [PROMPT], 16)
    ends = whole.token_ids[9]
    first = whole.token_ids.index(ends)
    for eos in ([1, ends], ends, [ends]):
        edit_json(m / "generation_config.json", eos_token_id=eos)
        other = load_model(m, device="cpu", dtype="float32")
        (found,) = generate(other, tokenizer, [PROMPT], 16)
        ids = torch.tensor(encode(tokenizer, [PROMPT]))
        theirs = hf.generate(
            ids, generation_config=Theirs.from_pretrained(m), max_new_tokens=16, pad_token_id=2
        )
        assert found.token_ids == theirs[0, ids.shape[1] :].tolist() == whole.token_ids[: first + 1]
    # the id that config.json ends at is said by a model that is not to end there
    edit_json(m / "config.json", eos_token_id=whole.token_ids[3])
    (on,) = generate(load_model(m, device="cpu", dtype="float32"), tokenizer, [PROMPT], 16)
    assert on.token_ids == found.token_ids


def test_flags_override_the_file_one_by_one(tmp_path):
    file = GenerationConfig.from_pretrained(
        written(tmp_path / "m", {"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    )
    assert file.sampling() == Sampling(0.6, 50, 0.9)
    assert file.sampling(temperature=0) == Sampling()
    assert file.sampling(temperature=1.5) == Sampling(1.5, 50, 0.9)
    assert file.sampling(top_k=0, top_p=1.0) == Sampling(0.6, 0, 1.0)
    greedy = GenerationConfig.from_pretrained(
        written(tmp_path / "g", {"temperature": 0.6, "top_p": 0.9})
    )
    assert greedy.sampling() == Sampling()  # do_sample is what decides
    assert greedy.sampling(temperature=0.5) == Sampling(0.5, 50, 0.9)
    assert GenerationConfig.from_pretrained(tmp_path).sampling() == Sampling()
    for name in ("top_k", "top_p"):
        with pytest.raises(PortError, match=f"{name} 1 has no effect on greedy text"):
            greedy.sampling(**{name: 1})


@pytest.mark.parametrize(
    "values,message",
    [
        ([], "holds a list, not an object"),
        ({"eos_token_id": "1"}, "eos_token_id"),
        ({"eos_token_id": [1, -1]}, "eos_token_id"),
        ({"eos_token_id": True}, "eos_token_id"),
        ({"eos_token_id": [1, 10**6]}, "eos_token_id 1000000 is no token of this model"),
        ({"do_sample": "false"}, "do_sample must be true or false"),
        ({"do_sample": 1}, "do_sample must be true or false"),
        ({"temperature": "0.6"}, "temperature must be a number"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.01}, "top_p must be 1.0 at most"),
        ({"top_p": -0.1}, "top_p must be 0"),
    ],
)
def test_values_that_cannot_be(values, message, tmp_path):
    m = copy(tmp_path / "m")
    written(m, values)
    with pytest.raises(PortError, match=f"generation_config.json.*{message}"):
        load_model(m, device="cpu")


@pytest.mark.parametrize(
    "values,message",
    [
        ({"repetition_penalty": 1.05}, "repetition_penalty is 1.05, which is not computed here"),
        ({"num_beams": 4}, "num_beams is 4"),
        ({"bad_words_ids": [[1]]}, "bad_words_ids"),
        ({"do_sample": True, "min_p": 0.1}, "min_p is 0.1"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(values, message, tmp_path, capsys):
    m = copy(tmp_path / "m")
    written(m, values)
    words = ["infer", "--model-dir", str(m), "--device", "cpu", "--max-new-tokens", "2"]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert main([*words, "--generation-config", "none"]) == 0
    load_model(m, device="cpu")  # a model is loaded all the same: nothing is said yet
    neutral = {"repetition_penalty": 1.0, "num_beams": 1, "min_p": 0.1, "suppress_tokens": []}
    assert GenerationConfig.from_pretrained(written(m, neutral)).sampling() == Sampling()


def test_infer_says_how_tokens_were_chosen(tmp_path, capsys):
    m = copy(tmp_path / "m")
    written(m, {"do_sample": True, "temperature": 0.6, "top_p": 0.95})
    words = ["infer", "--model-dir", str(m), "--device", "cpu", "--max-new-tokens", "6"]
    texts = []
    for more in ([], [], ["--temperature", "0"], ["--top-k", "1", "--seed", "9"]):
        assert main([*words, *more]) == 0
        texts.append(capsys.readouterr().out.partition("deepseek_v3:")[::2])
    assert "temperature 0.6, top_k 50, top_p 0.95" in texts[0][1]
    assert texts[0][0] == texts[1][0] != texts[2][0] == texts[3][0]
    assert "greedy" in texts[2][1] and "top_k 1," in texts[3][1]
    assert main([*words, "--temperature", "0", "--top-p", "0.5"]) == 2
    assert "--top-p 0.5 has no effect on greedy text" in capsys.readouterr().err
    for flag in ("--top-p=1.5", "--top-p=nan", "--top-k=-1", "--temperature=inf"):
        assert main([*words, flag]) == 2


def test_draws_keep_to_what_is_left():
    """Two thousand draws meet every token that top_k and top_p leave, and no other."""
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    for sampling, left in (
        (Sampling(1.0, top_k=2), {3, 4}),
        (Sampling(1.0, top_p=0.8), {3, 4}),
        (Sampling(1.0), {0, 1, 2, 3, 4}),
        (Sampling(1.0, top_p=0.0), {4}),
    ):
        sample = Sampler(sampling, [0], lambda row: "")
        assert {int(sample(logits)) for _ in range(2000)} == left
