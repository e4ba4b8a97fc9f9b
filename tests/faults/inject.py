"""Faults by kind: each spoils a copy of the embedded model, or of a split of it, and names the
command that must then say the same text as before, or refuse in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from dsv3_port.paths import tiny
from tests.weights.spoil import copy, header, place, poke

JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, -(2**63), 1e308, -0.5, 0.5, "", "x", "1",
    "true", "../x", "/etc/passwd", "\ud800", "\x1b[2J", [], {}, [1], {"a": 1}, [[]], "x" * 10_000,
]  # fmt: skip
SHARDS = [f"model-0000{i}-of-000003.safetensors" for i in (1, 2, 3)]
NUMBERS = [
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers",
    "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "max_position_embeddings",
    "rms_norm_eps", "rope_theta", "routed_scaling_factor",
]  # fmt: skip


@dataclass
class Fault:
    """What was done (`words`), and the command to run. wants: "same", "refused", or "either"."""

    words: str
    argv: list[str]
    wants: str = "either"
    environment: dict[str, str] = field(default_factory=dict)


Kind = Callable[[Random, Path, Path], Fault]  # (draws, an empty folder, a split's folder)


def infer(folder: Path, *more: str) -> list[str]:
    prompt = [] if any(m.startswith("--prompts") for m in more) else ["--prompt", "Once upon"]
    return ["infer", "--model-dir", str(folder), "--device", "cpu", "--max-new-tokens", "2",
            *prompt, *more]  # fmt: skip


def changed(rng: Random, value: Any, depth: int = 0) -> tuple[Any, str]:
    """One value somewhere in a JSON document exchanged, removed, or given another name."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        how = rng.choice(["inside", "inside", "gone", "name"])
        made = dict(value)
        if how == "inside":
            made[key], words = changed(rng, value[key], depth + 1)
            return made, f"{key}.{words}"
        held = made.pop(key)
        if how == "name":
            made[key[::-1] + "_"] = held
        return made, f"{key} {how}"
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        inner, words = changed(rng, value[at], depth + 1)
        return [*value[:at], inner, *value[at + 1 :]], f"{at}.{words}"
    new = rng.choice(JUNK)
    return new, f"= {new!r:.30}"


def flip(rng: Random, file: Path, first: int = 0, last: int | None = None) -> str:
    """One bit of a file, between two places."""
    data = bytearray(file.read_bytes())
    at = rng.randrange(first, last or len(data))
    data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return f"bit of byte {at} of {file.name}"


def rewrite(rng: Random, file: Path) -> str:
    """One of the ways in which a text file goes wrong."""
    data = file.read_bytes()
    how = rng.choice(["cut", "empty", "junk", "nul", "deep", "twice", "bom", "array", "utf16"])
    text = data.decode()
    file.write_bytes(
        {
            "cut": data[: rng.randrange(1, len(data) - 2)],
            "empty": b"",
            "junk": rng.randbytes(200),
            "nul": bytes(len(data)),
            "deep": b"[" * 200_000,
            "twice": text.replace("{", '{"twice": 1, "twice": 2, ', 1).encode(),
            "bom": b"\xef\xbb\xbf" + data,
            "array": b"[" + data + b"]",
            "utf16": text.encode("utf-16"),
        }[how]
    )
    return f"{file.name} {how}"


# ---- of a checkpoint's folder --------------------------------------------------------------------


def files(rng: Random, new: Path, split: Path) -> Fault:
    m, name = copy(new / "m"), rng.choice(SHARDS)
    file, size = m / name, (m / name).stat().st_size
    how = rng.choice("cut longer zeros empty gone folder link dangling lfs other more text".split())
    if how == "cut":
        os.truncate(file, rng.randrange(size))
    elif how == "longer":
        file.write_bytes(file.read_bytes() + rng.randbytes(rng.randrange(1, 99)))
    elif how == "more":
        (m / "notes.txt").write_text("hello")
    elif how == "other":
        shutil.copy(m / SHARDS[SHARDS.index(name) - 1], file)
    else:
        file.unlink()
        if how == "folder":
            file.mkdir()
        elif how == "zeros":
            file.write_bytes(bytes(size))
        elif how == "link":
            shutil.copy(tiny() / name, new / "outside")
            file.symlink_to(new / "outside")
        elif how == "dangling":
            file.symlink_to("nowhere")
        elif how != "gone":
            texts = {"lfs": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"}
            file.write_text(texts.get(how, "" if how == "empty" else "not weights"))
    return Fault(f"{name} {how}", infer(m), "same" if how == "more" else "refused")


def headers(rng: Random, new: Path, split: Path) -> Fault:
    m, name = copy(new / "m"), rng.choice(SHARDS)
    file = m / name
    start, entries = header(file)
    how = rng.choice(["flip", "value", "value", "length"])
    if how == "flip":
        return Fault(flip(rng, file, 8, start), infer(m))
    values = file.read_bytes()[start:]
    if how == "length":
        length = rng.choice([0, 1, start - 9, start, 2**31, 2**63, 2**64 - 1])
        file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
        return Fault(f"{name} header of {length} bytes", infer(m), "refused")
    made, words = changed(rng, entries)
    text = json.dumps(made).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + values)
    return Fault(f"{name} header {words}", infer(m))


def index(rng: Random, new: Path, split: Path) -> Fault:
    m = copy(new / "m")
    file = m / "model.safetensors.index.json"
    if rng.random() < 0.3:
        return Fault(rewrite(rng, file), infer(m))
    table = json.loads(file.read_text())
    made, words = changed(rng, table)
    if rng.random() < 0.4:
        tensor = rng.choice(sorted(table["weight_map"]))
        target = rng.choice(
            [*SHARDS, "nowhere.safetensors", "../m/" + SHARDS[0], str(m / SHARDS[0])]
        )
        made = {"weight_map": table["weight_map"] | {tensor: target}}
        words = f"{tensor} -> {target[-30:]}"
    file.write_text(json.dumps(made))
    return Fault(f"index {words}", infer(m))


def config(rng: Random, new: Path, split: Path) -> Fault:
    m = copy(new / "m")
    file = m / "config.json"
    values = json.loads(file.read_text())
    how, wants = rng.choice(["kind", "kind", "range", "arithmetic", "unknown", "text"]), "refused"
    if how == "text":
        return Fault(rewrite(rng, file), infer(m), "refused")
    if how == "kind":
        key = rng.choice([k for k in NUMBERS if k in values])
        values[key] = rng.choice(["7", True, [], {}, [7], "x", "nan"])
    elif how == "range":
        key = rng.choice([k for k in NUMBERS if k in values])
        values[key] = rng.choice([-1, 0, 2**40, 2**63, float("nan"), float("inf"), 1e300, 1.5e9])
        if key in (
            "rope_theta",
            "routed_scaling_factor",
            "max_position_embeddings",
            "rms_norm_eps",
        ):
            values[key] = rng.choice([-1, 0, float("nan"), float("inf"), 1e300])
    elif how == "arithmetic":
        key, values[key] = rng.choice(  # type: ignore[index]
            [("index_topk", 2048), ("sliding_window", 64), ("attention_bias", True),
             ("num_key_value_heads", 2), ("scoring_func", "softmax"), ("hidden_act", "gelu"),
             ("topk_method", "greedy"), ("model_type", "llama"), ("norm_topk_prob", "false"),
             ("rope_scaling", {"type": "linear", "factor": 2}), ("moe_layer_freq", 2)]
        )  # fmt: skip
    else:
        key, wants = rng.choice(["zoom", "_name_or_path", "use_cache", "auto_map"]), "same"
        values[key] = rng.choice(["x", 1, None, {"a": 1}])
    file.write_text(json.dumps(values))
    return Fault(f"config {key} = {values[key]!r:.30}", infer(m), wants)


def values(rng: Random, new: Path, split: Path) -> Fault:
    """What is in a tensor and cannot be right."""
    m = copy(new / "m")
    tensors = {k: v for f in SHARDS for k, v in header(m / f)[1].items() if "layers.4." not in k}
    tensors.pop("__metadata__", None)
    codes = {"BF16": ("c07f", "807f", "80ff"), "F32": ("0000c07f", "0000807f", "000080ff"),
             "F8_E4M3": ("7f", "ff")}  # fmt: skip
    name = rng.choice(sorted(k for k, v in tensors.items() if v["dtype"] in codes))
    code = bytes.fromhex(rng.choice(codes[tensors[name]["dtype"]]))
    _, _, size = place(m, name)
    how = rng.choice(["one", "one", "zeros"])
    if how == "zeros" and not name.endswith("correction_bias"):
        poke(m, name, bytes(size))
    else:
        poke(m, name, code, len(code) * rng.randrange(size // len(code)))
    return Fault(f"{name} {how} {code.hex()}", infer(m), "refused")


def tokenizer(rng: Random, new: Path, split: Path) -> Fault:
    m, name = (
        copy(new / "m"),
        rng.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"]),
    )
    file = m / name
    how = rng.choice(["text", "gone", "value", "folder"])
    if how == "text":
        return Fault(rewrite(rng, file), infer(m), "refused")
    if how == "value" and name == "tokenizer_config.json":
        settings = json.loads(file.read_text())
        key = rng.choice(["add_bos_token", "add_eos_token"])
        settings[key] = rng.choice(["yes", 1, [], {}, 0.5])
        file.write_text(json.dumps(settings))
        return Fault(f"{name} {key} = {settings[key]!r}", infer(m), "refused")
    file.unlink()
    if how == "folder":
        file.mkdir()
    wants = "refused" if name == "tokenizer.json" or how == "folder" else "either"
    return Fault(f"{name} {how}", infer(m), wants)


def generation(rng: Random, new: Path, split: Path) -> Fault:
    m = copy(new / "m")
    file = m / "generation_config.json"
    if rng.random() < 0.2:
        return Fault(rewrite(rng, file), infer(m))
    held = json.loads(file.read_text()) | {"temperature": 0.6, "top_p": 0.9, "top_k": 5}
    made, words = changed(rng, held)
    file.write_text(json.dumps(made))
    return Fault(f"generation_config {words}", infer(m, "--temperature", "0"))


TEMPLATES = [
    "{{ raise_exception('no') }}", "{% if %}", "{{ messages[9].content }}", "{{ 1 / 0 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**11 }}", "{{ ''.__class__.__mro__ }}", "{% include '/etc/passwd' %}",
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}", "{{ undefined.nothing }}",
    "{{ messages|tojson|nonsense }}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "\x00{{",
    "{{ messages.append(1) }}", "",
]  # fmt: skip


def templates(rng: Random, new: Path, split: Path) -> Fault:
    m = copy(new / "m")
    file = m / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["chat_template"] = template = rng.choice([*TEMPLATES, 7, ["x"], {"a": 1}])
    file.write_text(json.dumps(settings))
    return Fault(f"template {template!r:.50}", infer(m, "--chat"), "refused")


# ---- of a split's folder -------------------------------------------------------------------------


def manifests(rng: Random, new: Path, split: Path) -> Fault:
    out = Path(shutil.copytree(split, new / "out"))
    file = rng.choice([out / "manifest.json", next(out.glob("rank-*")) / "manifest.json"])
    if rng.random() < 0.3:
        return Fault(rewrite(rng, file), infer(out))
    made, words = changed(rng, json.loads(file.read_text()))
    file.write_text(json.dumps(made))
    return Fault(f"{file.parent.name[:4]} manifest {words}", infer(out))


def ranks(rng: Random, new: Path, split: Path) -> Fault:
    """Anything in a finished split that is not as it was written."""
    out = Path(shutil.copytree(split, new / "out"))
    weights = sorted(out.glob("rank-*/*.safetensors"))
    side = [f for f in out.iterdir() if f.is_file() and f.name != "manifest.json"]
    how = rng.choice(["bit", "bit", "side", "side", "cut", "gone", "longer"])
    if how == "side":
        return Fault(flip(rng, rng.choice(side)), infer(out), "refused")
    file = rng.choice(weights)
    if how == "bit":
        return Fault(flip(rng, file), infer(out), "refused")
    if how == "cut":
        os.truncate(file, rng.randrange(file.stat().st_size))
    elif how == "longer":
        file.write_bytes(file.read_bytes() + b"\0")
    else:
        shutil.rmtree(file.parent) if rng.random() < 0.5 else file.unlink()
    return Fault(f"{file.name} {how}", infer(out), "refused")


def resumed(rng: Random, new: Path, split: Path) -> Fault:
    """A split that is asked for again with another source."""
    out, m = Path(shutil.copytree(split, new / "out")), copy(new / "m")
    name = rng.choice([*SHARDS, "tokenizer.json", "tokenizer_config.json", "config.json"])
    words, wants = "", "refused"
    if name in SHARDS:
        start, entries = header(m / name)
        tensor = rng.choice(sorted(entries.keys() - {"__metadata__"}))
        first, last = entries[tensor]["data_offsets"]
        words = f"{tensor}, " + flip(rng, m / name, start + first, start + last)
        if "layers.4." in tensor:  # of multi-token prediction: nothing of it is in a split
            wants = "any"
    else:
        words = flip(rng, m / name)
    argv = ["shard", "--model-path", str(m), "--output-path", str(out), "--world-size", "1"]
    return Fault(f"again, {words}", [*argv, "--dtype", "fp32"], wants)


# ---- of words and surroundings -------------------------------------------------------------------

WORDS = ["", "x", "nan", "inf", "-1", "0", "1e400", str(2**64), "0-99999999999", "\ud800", "١", "--",
         "a" * 9999, "../..", "/dev/null", "/dev/full", "\x1b[2J", "1.5", "True", "None"]  # fmt: skip
FLAGS = {
    "infer": ["--world-size", "--rank-id", "--local-rank", "--master-port", "--master-addr",
              "--input-max-len", "--max-new-tokens", "--batch-size", "--tokenizer-mode", "--exe-mode",
              "--plan", "--dtype", "--device", "--temperature", "--top-k", "--top-p", "--seed",
              "--generation-config", "--model-dir", "--prompts", "--job-timeout", "--gmm-provider"],
    "shard": ["--model-path", "--world-size", "--ranks", "--jobs", "--dtype", "--plan"],
    "plan": ["--config", "--world-size", "--hbm", "--forecast"],
    "compare": ["--plan-a", "--dtype-a", "--ranks-a"],
}  # fmt: skip


def arguments(rng: Random, new: Path, split: Path) -> Fault:
    """One odd value; what else it says is right. Another text is right where a flag asks for it."""
    command = rng.choice(["infer", "infer", "infer", "shard", "plan", "compare"])
    flag, word = rng.choice(FLAGS[command]), rng.choice(WORDS)
    right = {
        "infer": infer(tiny(), "--show-settings") if rng.random() < 0.5 else infer(tiny()),
        "shard": ["shard", "--model-path", str(tiny()), "--output-path", str(new / "out"),
                  "--world-size", "1", "--dry-run"],
        "plan": ["plan", "--config", str(tiny()), "--world-size", "1"],
        "compare": ["compare", "nowhere"],
    }  # fmt: skip
    return Fault(f"{command} {flag}={word!r:.30}", [*right[command], f"{flag}={word}"], "any")


def environment(rng: Random, new: Path, split: Path) -> Fault:
    from dsv3_port.engine.settings import TABLE

    name = rng.choice([*(row.variable for row in TABLE), "RANK"])
    word = rng.choice([w for w in WORDS if "\ud800" not in w])
    argv = [w for w in infer(tiny()) if w != str(tiny())]
    argv.remove("--model-dir")
    fault = Fault(f"{name}={word!r:.30}", argv, "any", {"MODEL_DIR": str(tiny())} | {name: word})
    if rng.random() < 0.25:
        name = rng.choice(["HOME", "TMPDIR", "XDG_CACHE_HOME", "LC_ALL", "TERM", "COLUMNS"])
        word = rng.choice(["/nowhere", "/dev/null", "", "x" * 300, "-1"])
        return Fault(f"{name}={word!r:.30}", infer(tiny()), "same", {name: word})
    return fault


def prompts(rng: Random, new: Path, split: Path) -> Fault:
    file = new / "prompts.json"
    good = [
        [{"role": "user", "content": "Once"}, {"role": "assistant", "content": "upon"}],
        "a time",
    ]
    made, words = changed(rng, good)
    file.write_text(json.dumps(made))
    if rng.random() < 0.2:
        words = rewrite(rng, file)
    return Fault(f"prompts {words}", infer(tiny(), "--prompts", str(file)), "any")


KINDS: dict[str, Kind] = {
    f.__name__: f
    for f in (
        files, headers, index, config, values, tokenizer, generation, templates, manifests, ranks,
        resumed, arguments, environment, prompts,
    )
}  # fmt: skip
